// A CUDA device that does nothing, for torch's CPU build: with it, fake tensors on "cuda" have autograd and autocast.
// benchmarks/gpu_plan.py builds it and loads it before torch.
#include <ATen/SDPBackend.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
using namespace c10;
const Device device(DeviceType::CUDA, 0);

struct Guard : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return device; }
  Device getDevice() const override { return device; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, device); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, device); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, device); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};
Guard guard;
impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);

// The kernel of scaled_dot_product_attention: cuDNN's in half precision, as torch prefers on an H100; else the memory
// efficient one.
int64_t attention(const at::Tensor& query, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                  double, bool, std::optional<double>, bool) {
  const bool is_half = query.scalar_type() == kBFloat16 || query.scalar_type() == kHalf;
  return static_cast<int64_t>(is_half ? at::SDPBackend::cudnn_attention : at::SDPBackend::efficient_attention);
}
struct Choose {
  Choose() { at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&attention); }
} choose;
}  // namespace

namespace at {
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at

"""The chat templates that tokenizers are saved with, by name."""

# Plain words mark the turns, and the end of a turn is the end of a document, so that every tokenizer can say it and a
# pretrained model already knows its tokens. A prompt ends before a space, where no tokenizer here joins pieces.
PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- '지시: ' + message['content'] + '\n' -}}
{%- elif message['role'] == 'user' -%}{{- '질문: ' + message['content'] + '\n답변:' -}}
{%- elif message['role'] == 'assistant' -%}
{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}{{- raise_exception('the role ' + message['role'] + ' is not system, user or assistant') -}}
{%- endif -%}
{%- endfor -%}
"""

# ChatML, after a bos as every document of a base has one. After a question the answer is opened, asked to or not.
CHATML = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
{%- elif message['role'] in ('system', 'user') -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- else -%}{{- raise_exception('the role ' + message['role'] + ' is not system, user or assistant') -}}
{%- endif -%}
{%- if loop.last and message['role'] == 'user' -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
{%- endfor -%}
"""

# For tokenizers that lose line feeds, as the blog's does: marks of punctuation, which it parts from what they touch.
BLOG = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- '### 지시: ' + message['content'] + ' ' -}}
{%- elif message['role'] == 'user' -%}{{- '### 질문: ' + message['content'] + ' ### 답변:' -}}
{%- elif message['role'] == 'assistant' -%}
{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}{{- raise_exception('the role ' + message['role'] + ' is not system, user or assistant') -}}
{%- endif -%}
{%- endfor -%}
"""

TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "blog": BLOG}

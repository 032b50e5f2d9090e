"""Rebus' built-in templates as Jinja, for folders whose tokenizer brings no chat template of its own."""

CHATML = (
    "{% for message in messages %}<<system>><|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'video' %}<<video>>"
    "{% else %}<<image>>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n<<words>><|im_end|>\n{% endif %}"


def chat_template(name: str, placeholders: dict[str, str], system: str | None) -> str | None:
    """The template of that name; None for those that have no Jinja here. placeholders: what stands for an `image` and a
    `video`. system: what the system says where a conversation does not; None: nothing."""
    if name != "chatml":
        return None
    written = CHATML.replace("<<system>>", SYSTEM.replace("<<words>>", system) if system else "")
    video = placeholders.get("video", placeholders["image"])
    return written.replace("<<image>>", placeholders["image"]).replace("<<video>>", video)

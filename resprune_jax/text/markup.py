"""The markup of chat templates, which stands around a question and is no part of it.

A prompt may come with it: a user who writes the whole text (`chat_template=False`), or copies one.
Masked are the special tokens, role names and system prompts of ChatML (Qwen, Yi, LLaVA-OneVision),
Llama 2 and 3, Mistral and Vicuna; what the turns themselves say stays. Every pattern takes time
that grows with the length of the text and no faster, whatever the text is.
"""

import re

_NAMES = "system|user|assistant|tool"
# A system turn with the text in it: up to the next turn's mark, which must be there.
_SYSTEM_TURNS = (
    re.compile(r"<\|im_start\|>[ \t]*system\b(?:[^<]++|<(?!\|im_))*+(?=<\|im_)"),
    re.compile(
        r"<\|start_header_id\|>[ \t]*system[ \t]*<\|end_header_id\|>"
        r"(?:[^<]++|<(?!\|(?:eot_id|start_header_id)\|>))*+(?=<\|)"
    ),
    re.compile(r"<<SYS>>(?:[^<]++|<(?!</?SYS>>))*+<</SYS>>"),
)
# A name is a role only where its mark stands beside it.
_ROLES = (
    re.compile(rf"<\|im_start\|>[ \t]*(?:{_NAMES})(?=[\s<]|\Z)"),
    re.compile(r"<\|start_header_id\|>[^<>\n]{0,40}<\|end_header_id\|>"),
    re.compile(r"\b(?:Picture|Video) \d{1,4}: ?(?=<\|vision_start\|>)"),
)
_TOKENS = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:unk|pad|bos|eos)>"
    r"|<im_(?:start|end|patch)>|<(?:image|video|audio)(?:_\d{1,9})?>",
    re.IGNORECASE,
)
_QUALITY = (
    r"(?:very|helpful|respectful|honest|harmless|polite|friendly|AI|artificial intelligence"
    r"|language|vision|visual|multimodal|and)"
)
# Default system prompts, where no mark tells them from the question: only as a text's beginning.
_SYSTEM_SENTENCES = re.compile(
    r"\A\s*+(?:A chat between a curious (?:user|human) and an artificial intelligence assistant\."
    r"(?:\s+The assistant gives helpful, detailed, and polite answers to the (?:user|human)'s"
    r" questions\.)?"
    r"|(?:You are Qwen, created by Alibaba Cloud\.\s*)?"
    rf"You are an? (?:{_QUALITY}(?:, | ))*assistant\."
    r"(?:\s+You are able to understand the visual content that the user provides, and assist the"
    r" user with a variety of tasks using natural language\.)?"
    r"|Answer the questions\.)",
    re.IGNORECASE,
)
_USER = re.compile(r"\bUSER:")
_ROLE = re.compile(r"\b(?:USER|ASSISTANT):")
# Also outside a whole conversation: a role that opens a line, and the one that asks for an answer.
_LABELS = re.compile(
    r"^[ \t]*(?:USER|ASSISTANT)[ \t]*:[ \t]*|\bASSISTANT:(?=\s*\Z)", re.IGNORECASE | re.MULTILINE
)


def blank(match: re.Match[str]) -> str:
    """As many spaces as the match has characters, its line breaks kept."""
    return re.sub(r"[^\n]", " ", match.group())


def mask_markup(text: str) -> str:
    """Blank out chat markup, character for character.

    Args:
        text: a question or a whole prompt, its line breaks "\\n".

    Returns:
        A text of the same length and lines, spaces where markup was.
    """
    for pattern in (*_SYSTEM_TURNS, *_ROLES, _TOKENS):
        text = pattern.sub(blank, text)
    return _LABELS.sub(blank, _SYSTEM_SENTENCES.sub(blank, _vicuna(text)))


def _vicuna(text: str) -> str:
    """Blank the roles of a conversation in Vicuna's form and the system prompt before it."""
    first = _USER.search(text)
    if first is None or text.find("ASSISTANT:", first.end()) < 0:
        return text
    # After half a sentence it is a word of the question: "Which name follows USER: here?"
    before = text[: first.start()].rstrip(" \t")
    if before and before[-1] not in "\n.?!:'\")":
        return text
    if before.strip() and text.rstrip().endswith("ASSISTANT:"):
        text = re.sub(r"[^\n]", " ", text[: first.start()]) + text[first.start() :]
    return _ROLE.sub(blank, text)

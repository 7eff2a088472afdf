"""The text of a response, cut where its tokens are."""

from collections.abc import Sequence
from functools import partial

from mmrl.models.processor import Processor


def pieces_of(tokens: Sequence[int], processor: Processor) -> tuple[str, ...]:
    """The text that each token adds; together they are the text of all of them, special tokens left out.

    A letter of several tokens stands with the last of them.
    """
    decode = partial(processor.tokenizer.decode, skip_special_tokens=True)
    pieces: list[str] = []
    start = 0  # the first token of which the text is not settled
    for k in range(len(tokens)):
        text, before, own = decode(tokens[start : k + 1]), decode(tokens[start:k]), decode(tokens[k : k + 1])
        if start < k and before + own == text:  # what was kept back was the beginning of no letter
            pieces[-1], start, text = before, k, own
        if text.endswith("\ufffd") and k + 1 < len(tokens):  # perhaps a letter of which more is to come
            text = ""
        else:
            start = k + 1
        pieces.append(text)
    return tuple(pieces)

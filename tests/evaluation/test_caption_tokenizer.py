"""The tokenizer on hand-made captions; what is expected is what Stanford's PTBTokenizer 3.4.1 answers."""

from __future__ import annotations

import pytest

from mmfusion.errors import DataError
from mmfusion.evaluation import tokenize_caption, tokenize_captions

CASES = {
    "": "",
    "   \n ": "",
    ".": "",
    "A dog runs .": "a dog runs",
    "A man's dog doesn't bark, it can't.": "a man 's dog does n't bark it ca n't",
    "I'm sure they've said he'll go; we're here.": "i 'm sure they 've said he 'll go we 're here",
    "it's its' dogs' James'": "it 's its dogs james",
    "DON'T Couldn’t shouldnt dont'": "do n't could n't shouldnt dont",
    "cannot gonna wanna gotta gimme lemme 'tis 'twas": "can not gon na wan na got ta gim me lem me 't is 't was",
    '"Hello," she said (loudly) [sic] {x}.': "hello she said -lrb- loudly -rrb- -lsb- sic -rsb- -lcb- x -rcb-",
    "a state-of-the-art T-shirt -- two-tone...": "a state-of-the-art t-shirt two-tone",
    "-ing pre- a - b – c — d": "ing pre a b c d",
    "wow!!! what?? yes?! no!": "wow !!! what ?? yes ?! no",
    "U.S. Army men vs. the U.K. team etc. end": "u.s. army men vs. the u.k. team etc. end",
    "Mr. Smith of St. Louis, Ph.D., at 10 a.m.": "mr. smith of st. louis ph.d. at 10 a.m.",
    "He paid $5.50 for 3/4 of 1,000 at 10:30": "he paid $ 5.50 for 3/4 of 1,000 at 10:30",
    "50% of 20-year-old 1920s 1920's 5th 4x4": "50 % of 20-year-old 1920s 1920 's 5th 4x4",
    "#21 jersey # 5 No. 5 no.5 and no": "# 21 jersey # 5 no. 5 no. 5 and no",
    "AT&T R&B at&t B & W": "at&t r&b at & t b & w",
    "black/white and/or a/b/c/d w/": "black/white and/or a/b/c / d w /",
    "rock 'n' roll '90s rock'n'roll o'clock y'all": "rock 'n' roll '90s rock 'n' roll o'clock y' all",
    "see www.foo.com http://a.b/c?d=e me@x.com @you #tag": "see www.foo.com http://a.b/c?d=e me@x.com @you #tag",
    "dog,cat dog;cat dog:cat dog--cat dog…cat": "dog cat dog cat dog cat dog cat dog cat",
    "end.The end!The what?no": "end.the end!the what?no",
    "“curly” ‘single’ «angle»": "curly single angle",
    "naïve café über Ñandú Привет 你好 שלום مرحبا हिन्दी ไทย": "naïve café über ñandú привет 你好 שלום مرحبا हिन्दी ไทย",
    "€5 £5 5¢ ½ cup": "$ 5 # 5 5 cents 1/2 cup",
    "emoji 😀 dog 👩🏽\u200d🦱 heart ❤\ufe0f a😀b": "emoji dog heart ❤ a b",
    "x_y a*b ~5 <b>tag</b> ^ | = +": "x_y a * b ~ 5 <b> tag </b> ^ | = +",
    "soft\u00adhyphen no\u00a0break zero\u200bwidth": "softhyphen no break zero width",
    "smile :) ;-) (2) (two)": "smile :-rrb- ;--rrb- -lrb-2-rrb- -lrb- two -rrb-",
}


@pytest.mark.parametrize("caption", CASES)
def test_hand_made_captions(caption: str) -> None:
    assert tokenize_caption(caption) == CASES[caption].split()


def test_no_token_is_empty_or_holds_spaces() -> None:
    every = "".join(map(chr, range(0x20, 0x3000)))
    tokens = tokenize_caption(every + " ".join(every))
    assert all(token and not any(sign.isspace() for sign in token) for token in tokens)


def test_long_captions_take_linear_time() -> None:
    assert len(tokenize_caption("a well-known dog's toy, " * 5000)) == 25000
    assert len(tokenize_caption("a" * 20000)) == 1
    assert tokenize_caption("-" * 5000) == []


def test_captions_are_a_list_of_texts() -> None:
    assert tokenize_captions(["A dog.", "Two cats"]) == [["a", "dog"], ["two", "cats"]]
    with pytest.raises(DataError, match="list of texts"):
        tokenize_captions("a dog")
    with pytest.raises(DataError, match=r"no text \[row 1\]"):
        tokenize_captions(["a dog", None])

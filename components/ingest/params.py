"""Where the stories come from and how they are cleaned."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from components.params import Section


class Rules(Section):
    """Grounds for rejection that can be switched off.

    Always on, because no step after this one could work otherwise: `malformed`, `not_utf8`, `no_prompt`, `no_response`,
    `score_not_a_number`, `special_tokens` (a text that holds a special token of the language model could forge a turn of
    the chat) and `duplicate` (ids are made from the texts).
    """

    moderation: bool = Field(True, description="responses by moderators and bots")
    removed: bool = Field(True, description="prompts and responses that are only [removed] or [deleted]")
    looping: bool = Field(True, description="responses stuck in a loop: fewer than half of their four-word sequences differ")
    too_long: bool = Field(True, description="prompt + response longer than the language model's context or models.max_tokens")
    too_few: bool = Field(True, description="prompts left with fewer than min_responses responses")


class Repairs(Section):
    """Changes made to texts; each is counted. Leading and trailing white space always goes."""

    html_entities: bool = Field(True, description="&amp; and the like, also escaped twice; zero-width spaces go")
    bom: bool = Field(True, description="byte order marks within texts go")
    control: bool = Field(True, description="control characters other than tab and line ends go")
    line_endings: bool = Field(True, description="CR LF and CR become LF")
    newline_tokens: bool = Field(True, description="a literal <\\newline> becomes a line end")
    markdown_escapes: bool = Field(True, description=r"\* and the like lose their backslash")
    prompt_tag: bool = Field(True, description="leading tags such as [WP] go, prompts only")
    seed_marker: bool = Field(True, description="a literal <SEED> goes, prompts only")
    removed_text: bool = Field(True, description="a last line that is only [removed] or [deleted] goes, prompts only")
    author_notes: bool = Field(
        True, description="closing lines such as `Edit: ...`, `More at r/...`, `Thanks for reading!` go, responses only"
    )
    detokenise: bool = Field(False, description="`` did n't '' and spaces before punctuation become ordinary writing")


class Params(Section):
    """The source and its cleaning, after Chung et al. 2025, and the split into train and test."""

    source: str = Field(
        "data/sample/stories.jsonl",
        min_length=1,
        description="a file, a folder of files, any fsspec URL, hf://datasets/owner/name[/path], or what DVC tracks in a git "
        "repository: git+https://host/repository.git@revision#path",
    )
    test_share: float = Field(0.1, gt=0, lt=1, description="share of the prompts on the test side")
    seed: int = Field(0, ge=0, description="seed of the split and of the choice of max_prompts")
    min_responses: int = Field(2, ge=1, description="responses that a prompt must have")
    max_prompts: int = Field(0, ge=0, description="at most so many prompts, chosen by hash; 0 is all")
    rules: Rules = Rules()
    repairs: Repairs = Repairs()

    @field_validator("source")
    @classmethod
    def _without_credentials(cls, value: str) -> str:
        if re.search(r"://[^/@\s]*:[^/@\s]+@", value):
            raise ValueError("holds a password, which would stand in every record; give credentials in the environment")
        return value

    @field_validator("max_prompts")
    @classmethod
    def _both_sides(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be 0 or at least 2: one prompt cannot be on both sides of the split")
        return value

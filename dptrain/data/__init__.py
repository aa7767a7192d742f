"""Sources of rows, the Poisson sampler and physical batches. Importing it registers the sources that dptrain ships."""

from __future__ import annotations

from dptrain.data import (
    adult,
    digits,
    fertility,
    film_dialogue,
    idx_images,
    image_folder,
    movie_sentences,
    sms_spam,
    spam_assassin,
    table,
    tagged,
    text,
)

__all__ = [
    "adult",
    "digits",
    "fertility",
    "film_dialogue",
    "idx_images",
    "image_folder",
    "movie_sentences",
    "sms_spam",
    "spam_assassin",
    "table",
    "tagged",
    "text",
]

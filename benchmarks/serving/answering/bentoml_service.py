"""Ratings by BentoML: on the event loop, in its threads, and with its adaptive batching.

MODELS=DIR python -m bentoml serve bentoml_service:Ratings --port PORT
"""

import os

import bentoml
import tensorflow as tf
from pydantic import BaseModel


class Pair(BaseModel):
    user_id: str
    item_id: str


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Ratings:
    def __init__(self) -> None:
        self.loaded = tf.saved_model.load(f"{os.environ['MODELS']}/ratings/1")
        self.signature = self.loaded.signatures["serving_default"]

    def rated(self, users: list[str], items: list[str]) -> list[float]:
        return self.signature(user_id=tf.constant(users), item_id=tf.constant(items))["rating"].numpy().tolist()

    @bentoml.api
    async def on_loop(self, user_id: str, item_id: str) -> float:
        return self.rated([user_id], [item_id])[0]

    @bentoml.api
    def in_threads(self, user_id: str, item_id: str) -> float:
        return self.rated([user_id], [item_id])[0]

    @bentoml.api(batchable=True, max_batch_size=64)
    def batched(self, pairs: list[Pair]) -> list[float]:
        return self.rated([pair.user_id for pair in pairs], [pair.item_id for pair in pairs])

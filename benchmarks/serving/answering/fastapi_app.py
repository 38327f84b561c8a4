"""Ratings by FastAPI, each as `async def` (on the event loop) and as `def` (in FastAPI's threads).

python fastapi_app.py PORT MODELS
"""

import sys

import numpy as np
import tensorflow as tf
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Pair(BaseModel):
    user_id: str
    item_id: str


class Rating(BaseModel):
    rating: float


port, models = int(sys.argv[1]), sys.argv[2]
app = FastAPI()
loaded = tf.saved_model.load(f"{models}/ratings/1")
signature = loaded.signatures["serving_default"]
model = tf.keras.models.load_model(f"{models}/ratings.keras")


def by_signature(pair: Pair) -> Rating:
    outputs = signature(user_id=tf.constant([pair.user_id]), item_id=tf.constant([pair.item_id]))
    return Rating(rating=float(outputs["rating"].numpy()[0]))


def by_predict(pair: Pair) -> Rating:
    ids = {"user": np.array([int(pair.user_id)], np.int32), "item": np.array([int(pair.item_id)], np.int32)}
    return Rating(rating=float(model.predict(ids, verbose=0)[0, 0]))


@app.post("/signature/def")
def signature_def(pair: Pair) -> Rating:
    return by_signature(pair)


@app.post("/signature/async")
async def signature_async(pair: Pair) -> Rating:
    return by_signature(pair)


@app.post("/predict/def")
def predict_def(pair: Pair) -> Rating:
    return by_predict(pair)


@app.post("/predict/async")
async def predict_async(pair: Pair) -> Rating:
    return by_predict(pair)


if __name__ == "__main__":
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")

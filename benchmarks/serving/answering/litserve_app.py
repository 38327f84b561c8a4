"""Ratings by LitServe, one request at a time and with its batching.

python litserve_app.py PORT MODELS
"""

import sys

import litserve


class Ratings(litserve.LitAPI):
    def setup(self, device):
        import tensorflow as tf

        self.tf = tf
        self.loaded = tf.saved_model.load(f"{sys.argv[2]}/ratings/1")
        self.signature = self.loaded.signatures["serving_default"]

    def decode_request(self, request):
        return request["user_id"], request["item_id"]

    def predict(self, pair):
        return self.rated([pair])[0]

    def encode_response(self, output):
        return {"rating": output}

    def rated(self, pairs):
        users, items = ([*ids] for ids in zip(*pairs, strict=True))
        constant = self.tf.constant
        return self.signature(user_id=constant(users), item_id=constant(items))["rating"].numpy().tolist()


class Batched(Ratings):
    def batch(self, inputs):
        return inputs

    def predict(self, pairs):
        return self.rated(pairs)

    def unbatch(self, output):
        return output


if __name__ == "__main__":
    apis = [Ratings(api_path="/single"), Batched(api_path="/batched", max_batch_size=16, batch_timeout=0.001)]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, access_log=False)

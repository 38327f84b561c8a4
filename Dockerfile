# docker build --target train|serve|operate|tfserving .
# train      the whole pipeline without a server, hence without its check before the push:
#            mkdir -p work; cd work; docker run --user $(id -u) -v $PWD:/srv/work IMAGE run digits-sample --push.no-validate
# serve      the embedded server, in the same folder: docker run -p 127.0.0.1:8500:8500 -p 127.0.0.1:8501:8501 -v $PWD/exports:/models:ro IMAGE
#            for a network that is not yours alone, with a token (docs/serving.md) and without 127.0.0.1:
#            docker run --user $(id -u) -p 8501:8501 -v $PWD/exports:/models:ro -v $PWD/token:/token:ro IMAGE --bind=0.0.0.0 --serving_root=/models --profile=hardened --token_file=/token
# operate    canary, promote, rollback, status, and the models.config that TF Serving follows: no TensorFlow inside
# tfserving  TensorFlow's own server with the same models, ports and flags; it knows no LIVE.json, the newest version answers

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# its home is the working folder, so that it may write there
RUN useradd --uid 1000 --home-dir /srv/work --create-home minibatch
WORKDIR /srv/minibatch
COPY pyproject.toml constraints.txt LICENSE README.md ./
COPY custom_optimizers custom_optimizers
COPY models models
COPY pipeline pipeline
COPY serving serving

FROM base AS train
RUN pip install -c constraints.txt ".[data,train,client,report]"
USER minibatch
WORKDIR /srv/work
ENTRYPOINT ["minibatch"]
CMD ["--help"]

FROM base AS serve
RUN pip install -c constraints.txt ".[serve]"
USER minibatch
WORKDIR /srv/work
EXPOSE 8500 8501
# exec form and no shell: the server itself is process 1 and gets the stop signal
ENTRYPOINT ["python", "-m", "serving.server"]
CMD ["--bind=0.0.0.0", "--port=8500", "--rest_api_port=8501", "--serving_root=/models"]

FROM base AS operate
RUN pip install -c constraints.txt ".[client]"
USER minibatch
WORKDIR /srv/work
ENTRYPOINT ["minibatch"]
CMD ["--help"]

# 2.20 is the newest image; it reads what TensorFlow 2.21 exports as long as no op is newer than 2.20.
FROM tensorflow/serving:2.20.0 AS tfserving
COPY serving/tfserving /etc/serving
EXPOSE 8500 8501
ENTRYPOINT ["tensorflow_model_server"]
CMD ["--port=8500", "--rest_api_port=8501", "--model_config_file=/etc/serving/models.config", \
     "--enable_batching=true", "--batching_parameters_file=/etc/serving/batching_parameters.txt", \
     "--monitoring_config_file=/etc/serving/monitoring.config"]

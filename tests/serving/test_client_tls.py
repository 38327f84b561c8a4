"""The client over TLS, with a certificate that it is told to trust, and without."""

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from serving import protocol
from serving.client import AsyncClient, Client, Retries, Timeouts, Tls, Unavailable
from tests.serving.certificates import write_certificate
from tests.serving.test_connections import Scripted, always, silent

STATUS = b'{"model_version_status": []}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(STATUS), STATUS)


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    return write_certificate(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="module")
def addresses(pem):
    """Of a REST and of a gRPC server that know no model, over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pem)

    def encrypted(server, connection):
        with context.wrap_socket(connection, server_side=True) as line:
            always(ANSWER)(server, line)

    class Status(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: protocol.GetModelStatusResponse(),
                protocol.GetModelStatusRequest.FromString,
                protocol.GetModelStatusResponse.SerializeToString,
            )

    rest = Scripted(encrypted)
    rpc = grpc.server(ThreadPoolExecutor(1), handlers=[Status()])
    credentials = grpc.ssl_server_credentials([(pem[1].read_bytes(), pem[0].read_bytes())])
    port = rpc.add_secure_port("127.0.0.1:0", credentials)
    rpc.start()
    yield {"rest": rest.address, "grpc": f"127.0.0.1:{port}"}
    rest.close()
    rpc.stop(None)


@pytest.mark.parametrize("name", ["rest", "grpc"])
def test_a_trusted_server_is_talked_to(addresses, pem, name):
    async def ask():
        async with AsyncClient(addresses[name], name, tls=Tls(pem[0])) as client:
            return [await client.status("m") for _ in range(2)]

    with Client(addresses[name], name, tls=Tls(pem[0])) as client:
        assert [client.status("m") for _ in range(2)] == asyncio.run(ask()) == [[], []]


@pytest.mark.parametrize("name", ["rest", "grpc"])
def test_a_server_that_never_shakes_hands_is_unavailable_after_the_connect_time_out(pem, name):
    mute = Scripted(silent)
    with Client(mute.address, name, Timeouts(0.2, 10), Retries(1), tls=Tls(pem[0])) as client:
        with pytest.raises(Unavailable):
            client.status("m")
    mute.close()


@pytest.mark.parametrize("name", ["rest", "grpc"])
@pytest.mark.parametrize("tls", [Tls(), None], ids=["other_roots", "plain"])
def test_a_server_that_is_not_trusted_gets_no_request(addresses, name, tls):
    with Client(addresses[name], name, tls=tls, retries=Retries(1), token="secret") as client:
        with pytest.raises(Unavailable):
            client.status("m")

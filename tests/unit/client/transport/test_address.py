"""How addresses, protocols and headers are read, and what is refused."""

import pytest

from deepfake_client import Tls
from deepfake_client.transport.address import check_headers, parse_address
from deepfake_preprocess.errors import OptionError


@pytest.mark.parametrize(
    ("url", "protocol", "named", "text", "secure"),
    [
        (None, None, "grpc", "localhost:8001", False),
        (None, "http", "http", "http://localhost:8000", False),
        (None, "grpc-shm", "grpc-shm", "localhost:8001", False),
        ("gpu-host", None, "grpc", "gpu-host:8001", False),
        ("gpu-host:9001", "grpc", "grpc", "gpu-host:9001", False),
        ("gpu-host:9000", "http", "http", "http://gpu-host:9000", False),
        ("gpu-host", "http", "http", "http://gpu-host:8000", False),
        ("grpc://gpu-host:9001/", "grpc-shm", "grpc-shm", "gpu-host:9001", False),
        ("grpcs://gpu-host", None, "grpc", "gpu-host:8001", True),
        ("http://gpu-host:8000", None, "http", "http://gpu-host:8000", False),
        ("http://gpu-host", None, "http", "http://gpu-host:80", False),
        ("https://gateway/triton/", None, "http", "https://gateway:443/triton", True),
        ("[::1]:8001", None, "grpc", "[::1]:8001", False),
        (" 10.0.0.1:8001 ", None, "grpc", "10.0.0.1:8001", False),
    ],
)
def test_an_address_means_what_people_expect(url, protocol, named, text, secure):
    address = parse_address(url, protocol=protocol)
    assert (address.protocol, str(address), address.tls is not None) == (named, text, secure)


def test_tls_that_is_asked_for_applies_to_every_form():
    tls = Tls()
    assert parse_address("gpu-host:8001", tls=tls).tls is tls
    assert str(parse_address("gpu-host:8443", protocol="http", tls=tls)) == "https://gpu-host:8443"
    assert str(parse_address(None, protocol="http", tls=tls)) == "https://localhost:8000"


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("gpu-host:8001", {"protocol": "rest"}, "'rest'; allowed: grpc, http, grpc-shm"),
        ("http://gpu-host:8000", {"protocol": "grpc"}, "is HTTP, but `protocol` is 'grpc'; set `protocol` to 'http'"),
        ("http://gpu-host:8000", {"protocol": "grpc-shm"}, "set `protocol` to 'http'"),
        ("grpc://gpu-host:8001", {"protocol": "http"}, "is gRPC, but `protocol` is 'http'; set `protocol` to 'grpc'"),
        ("http://gpu-host:8000", {"tls": Tls()}, "not encrypted, but TLS was asked for; write https://gpu-host:8000"),
        ("ftp://gpu-host", {}, "unknown scheme 'ftp'"),
        ("gpu-host:port", {}, "cannot be read"),
        ("gpu-host:99999", {}, "cannot be read"),
        ("", {}, "not a server's address"),
        (":8001", {}, "not a server's address"),
        ("gpu host:8001", {}, "not a server's address"),
        ("gpu-host:8001/v2", {}, "not a server's address"),
        ("http://gpu-host/?x=1", {}, "not a server's address"),
        ("http://me:secret@gpu-host", {}, "send the header"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_out(url, options, says):
    with pytest.raises(OptionError) as refused:
        parse_address(url, **options)
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


def test_headers_get_the_form_that_both_protocols_take():
    assert check_headers({"Authorization": "Bearer abc ", "x-team": "video"}) == (
        ("authorization", "Bearer abc"),
        ("x-team", "video"),
    )
    assert check_headers(None) == ()


@pytest.mark.parametrize("name", ["", "a b", "grpc-timeout", "key-bin", "ключ", "a\nb"])
def test_a_header_name_that_gRPC_would_refuse_is_refused_first(name):  # noqa: N802
    with pytest.raises(OptionError, match="a header is called"):
        check_headers({name: "x"})


@pytest.mark.parametrize("value", ["pass\nword", "pässword"])
def test_a_refused_value_is_not_repeated(value):
    with pytest.raises(OptionError, match="'authorization' has characters") as refused:
        check_headers({"authorization": value})
    assert value not in str(refused.value)

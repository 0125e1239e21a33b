"""The services' certificate: taken from a directory, and again when it changes."""

import asyncio
import shutil
import ssl

import pytest

from omniserve_agent.node.cluster.certificate import Certificate
from omniserve_agent.node.errors import NodeError
from support.certificates import write_pair


def presented(certificate):
    """What a client is shown, DER."""

    async def ask():
        async def hang_up(_, writer):
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=certificate.context)
        host, port = server.sockets[0].getsockname()
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(host, port, ssl=trusting)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        server.close()
        return shown

    return asyncio.run(ask())


def on_disk(directory):
    return ssl.PEM_cert_to_DER_cert((directory / "tls.crt").read_text())


def test_a_renewed_pair_is_taken_over(tmp_path):
    certificate = Certificate(write_pair(tmp_path))
    first = presented(certificate)
    assert first == on_disk(tmp_path)
    write_pair(tmp_path)
    certificate.reread()
    assert presented(certificate) == on_disk(tmp_path) != first


@pytest.mark.parametrize("spoil", ["tls.crt", "tls.key"])
def test_a_pair_that_does_not_fit_leaves_the_last_one_in_force(tmp_path, spoil):
    certificate = Certificate(write_pair(tmp_path / "used"))
    first = presented(certificate)
    other = write_pair(tmp_path / "other")
    shutil.copy(other / spoil, tmp_path / "used" / spoil)
    certificate.reread()
    assert presented(certificate) == first
    (tmp_path / "used" / spoil).unlink()
    certificate.reread()
    assert presented(certificate) == first


def test_a_directory_without_a_pair_is_refused_with_what_it_must_hold(tmp_path):
    with pytest.raises(NodeError, match=r"--tls-dir .*: .*; it must hold tls.crt and tls.key"):
        Certificate(tmp_path)
    write_pair(tmp_path)
    (tmp_path / "tls.key").write_text("no key")
    with pytest.raises(NodeError, match="both PEM"):
        Certificate(tmp_path)

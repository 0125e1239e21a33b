"""Self-signed certificates, as a mounted Secret of the type kubernetes.io/tls holds them."""

import subprocess

TIMEOUT_S = 30


def write_pair(directory, name="127.0.0.1"):
    """tls.crt and tls.key for one address into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext"]
    command += [f"subjectAltName=IP:{name}"]
    command += ["-keyout", str(directory / "tls.key"), "-out", str(directory / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    return directory

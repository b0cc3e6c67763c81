"""An S3 server for tests: moto's, as a process of its own on the loopback address, with a bucket in it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from perpetual_blocks.adapters.local_server import stop

START_SECONDS = 120.0
USER, PASSWORD, REGION = "tester", "canary-of-the-bucket", "us-east-1"


class Bucket:
    """A bucket, as whoever looks from outside sees it.

    Args:
        endpoint: The server's address.
    """

    name = "chains"

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.endpoint = endpoint
        session = boto3.Session(aws_access_key_id=USER, aws_secret_access_key=PASSWORD, region_name=REGION)
        self._client = session.client("s3", endpoint_url=endpoint)

    def make(self) -> None:
        self._client.create_bucket(Bucket=self.name)

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that begin so."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def write(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=content)

    def block(self, folder: str = "", endpoint: str | None = None, **config: Any) -> Any:
        """A storage block for it.

        Args:
            endpoint: Another server's address.
            config: Of botocore's client.
        """
        from prefect_aws import AwsClientParameters, MinIOCredentials, S3Bucket

        credentials = MinIOCredentials(
            minio_root_user=USER,
            minio_root_password=PASSWORD,
            region_name=REGION,
            aws_client_parameters=AwsClientParameters(endpoint_url=endpoint or self.endpoint, config=config or None),
        )
        return S3Bucket(bucket_name=self.name, bucket_folder=folder, credentials=credentials)


@contextmanager
def running_bucket() -> Iterator[Bucket]:
    """Starts a server with an empty bucket, and stops it at the end.

    Raises:
        ImportError: moto or prefect-aws is not installed.
    """
    import moto  # noqa: F401
    import prefect_aws  # noqa: F401

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        bucket = Bucket(f"http://127.0.0.1:{port}")
        _wait_until_it_answers(server, bucket.endpoint)
        bucket.make()
        yield bucket
    finally:
        stop(server)


def free_port() -> int:
    """A port of the loopback address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", endpoint: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            httpx.get(f"{endpoint}/moto-api/", timeout=2)
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"moto's server does not answer at {endpoint}")

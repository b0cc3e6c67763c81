"""An S3 server for tests: moto's, as a process of its own on the loopback address, with a bucket in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perpetual_blocks.cli.demos.s3_server import s3_server

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

    with TemporaryDirectory(prefix="perpetual-s3-") as folder, s3_server(Path(folder) / "server.log") as endpoint:
        bucket = Bucket(endpoint)
        bucket.make()
        yield bucket

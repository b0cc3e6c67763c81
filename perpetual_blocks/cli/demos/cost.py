"""The cost: 45 texts of a bucket are summarised for some 12 dollars, on an account with 7."""

import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from perpetual_blocks.cli.demos.application import PERPETUAL, Application
from perpetual_blocks.cli.demos.http_server import served
from perpetual_blocks.cli.demos.model_server import MODEL, ModelHandler, ModelService
from perpetual_blocks.cli.demos.s3_server import s3_server

TEXTS, TEXT_BYTES = 45, 4_000
TOTAL, MARGIN = 5.0, 2.0
"""US dollars: what may be spent until a person allows more, and what the account has besides. A process that is killed
has spent something that nobody has counted yet."""

PRICES = {"million_tokens_in": 200.0, "million_tokens_out": 800.0, "put": 0.005, "get": 0.0004}
"""A hundred times and more what it costs in life, so that a small demo comes to dollars."""

BUCKET = "texts"


class Cost(Application):
    """Reads and writes a local S3 server, and asks a local model that wants credit; a person pays again and again."""

    name = "cost"
    flow = "cost_limited.py:summarise_bucket"
    needs = ("boto3", "openai", "moto", "flask")
    limit = f"{TOTAL + MARGIN:g} dollars on the account, until a person pays more"

    @contextmanager
    def parts(self) -> Iterator[None]:
        """The bucket with the texts, and the model's server."""

        class Handler(ModelHandler):
            service = ModelService(
                credit=TOTAL + MARGIN, prices=(PRICES["million_tokens_in"], PRICES["million_tokens_out"])
            )

        self.service = Handler.service
        with ExitStack() as stack:
            self._s3 = stack.enter_context(s3_server(self.folder / "s3.log"))
            self._model = stack.enter_context(served(Handler))
            self._fill()
            yield

    def parameters(self) -> dict[str, Any]:
        return {"bucket": BUCKET, "model": MODEL, "prices": PRICES}

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self._s3,
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "no-key-is-needed-here",
            "AWS_DEFAULT_REGION": "us-east-1",
            "OPENAI_BASE_URL": f"{self._model}/v1",
            "OPENAI_API_KEY": "no-key-is-needed-here",
        }

    def expected(self) -> int:
        return TEXTS

    def results(self) -> dict[str, str]:
        found = self._bucket().list_objects_v2(Bucket=BUCKET, Prefix="summaries/").get("Contents", [])
        return {entry["Key"]: entry["ETag"] for entry in found}

    def overruns(self) -> int:
        return self.service.refused["insufficient_quota"]

    def goes_on(self, status: Mapping[str, Any]) -> bool:
        """A person pays as much again, and says so."""
        if status["status"] != "exhausted":
            return False
        self.service.pay(TOTAL)
        approve = [*PERPETUAL, "approve", status["chain"], "--more", f"cost={TOTAL}"]
        return subprocess.run(approve, capture_output=True, check=False).returncode == 0

    @staticmethod
    def plain(parameters: Mapping[str, Any]) -> Iterator[None]:
        import openai

        bucket, model = import_module("boto3").client("s3"), openai.OpenAI()
        name = parameters["bucket"]
        for entry in bucket.list_objects_v2(Bucket=name, Prefix="texts/")["Contents"]:
            text = bucket.get_object(Bucket=name, Key=entry["Key"])["Body"].read().decode()
            prompt = f"Summarise this text in three sentences.\n\n{text}"
            answer = model.chat.completions.create(
                model=parameters["model"], messages=[{"role": "user", "content": prompt}], max_tokens=300
            )
            said = (answer.choices[0].message.content or "").encode()
            bucket.put_object(Bucket=name, Key=entry["Key"].replace("texts/", "summaries/"), Body=said)
            yield

    def _bucket(self) -> Any:
        session = import_module("boto3").Session(
            aws_access_key_id="demo", aws_secret_access_key="demo", region_name="us-east-1"
        )
        return session.client("s3", endpoint_url=self._s3)

    def _fill(self) -> None:
        bucket = self._bucket()
        bucket.create_bucket(Bucket=BUCKET)
        for path in texts():
            bucket.put_object(Bucket=BUCKET, Key=f"texts/{path.stem}", Body=path.read_bytes()[:TEXT_BYTES])


def texts() -> list[Path]:
    """Modules of Python's standard library that are long enough."""
    library = Path(sysconfig.get_path("stdlib"))
    return [path for path in sorted(library.glob("*.py")) if path.stat().st_size >= TEXT_BYTES][:TEXTS]

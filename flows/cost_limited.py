"""Summarises the texts of a bucket with a language model, for so many dollars in all.

python flows/cost_limited.py         # serves the deployment `summarise-bucket/cost-limited` from this process

Bucket and model are found as boto3 and openai find them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, OPENAI_API_KEY, …
"""

from collections.abc import Iterable

import boto3
import openai
from pydantic import BaseModel, Field

from perpetual_blocks import Budget, Limit, PerpetualAgent, Unit, WorkItem
from perpetual_blocks.handoff import Handoff

ANSWER_TOKENS, PAYMENT_REQUIRED = 300, 402
BYTES_PER_TOKEN = 3
"""Fewer than a token has on average: what is reserved is enough."""


class Prices(BaseModel):
    """US dollars; as of S3 Standard in us-east-1, and of gpt-4o-mini."""

    get: float = Field(default=0.0004 / 1000, ge=0, description="A request that reads an object.")
    put: float = Field(default=0.005 / 1000, ge=0, description="A request that writes an object.")
    gigabyte: float = Field(default=0.09, ge=0, description="Transfer out of the bucket, per 10^9 bytes.")
    million_tokens_in: float = Field(default=0.15, ge=0, description="What the model reads, per million tokens.")
    million_tokens_out: float = Field(default=0.60, ge=0, description="What the model writes, per million tokens.")


class CostLimited(PerpetualAgent):
    """Write a summary of each text in a bucket back into it, and keep account of what each service costs.

    What a unit can cost at most is reserved before its first request. When the total is gone, a person decides whether
    there is more; the handoff says what was spent on what, and what the rest will cost.
    """

    cancellable = ("cost",)  # nothing is asked for that was not reserved

    bucket: str = Field(description="The bucket's name.")
    texts: str = Field(default="texts/", description="The keys of the texts begin so.")
    summaries: str = Field(default="summaries/", description="The keys of the summaries begin so.")
    model: str = Field(default="gpt-4o-mini", description="A model of the OpenAI API.")
    prices: Prices = Field(default=Prices(), description="What the services cost.")

    def plan(self) -> Iterable[WorkItem]:
        pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.texts)
        for entry in (entry for page in pages for entry in page.get("Contents", [])):
            most = sum(self._most(entry["Size"]).values())
            yield WorkItem(
                id=entry["Key"].removeprefix(self.texts), payload={"size": entry["Size"]}, bound={"cost": most}
            )

    def work_unit(self, unit: Unit) -> object:
        most = sum(self._most(unit.payload["size"]).values())
        lost = most if unit.begun_before else 0.0  # spent by a process that died before it could say so
        unit.reserve(cost=lost + most)
        if lost:
            self._spend(unit, lost=lost)
        bucket, summary = boto3.client("s3"), f"{self.summaries}{unit.id}"
        text = bucket.get_object(Bucket=self.bucket, Key=f"{self.texts}{unit.id}")["Body"].read()
        self._spend(unit, get=self.prices.get, transfer=len(text) * self.prices.gigabyte / 1e9)
        prompt = f"Summarise this text in three sentences.\n\n{text.decode(errors='replace')}"
        try:
            answer = openai.OpenAI().chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], max_tokens=ANSWER_TOKENS
            )
        except openai.APIStatusError as refusal:
            if refusal.status_code != PAYMENT_REQUIRED or "cost" not in unit.remaining:
                raise
            # The account is empty sooner than we have counted, and so the total is gone: a person is asked.
            self._spend(unit, unknown=unit.remaining["cost"])
            return unit.advance(next_action="go on when there is credit again")
        assert answer.usage is not None
        tokens_in, tokens_out = answer.usage.prompt_tokens, answer.usage.completion_tokens
        self._spend(unit, model=self._model_price(tokens_in, tokens_out))
        unit.spend(tokens=tokens_in + tokens_out, calls=1)
        said = answer.choices[0].message.content or ""
        bucket.put_object(Bucket=self.bucket, Key=summary, Body=said.encode())  # the same key: safe to do twice
        self._spend(unit, put=self.prices.put)
        return {"summary": summary, "cost": unit.usage["cost"]}

    def create_handoff(self, handoff: Handoff) -> Handoff:
        """Says what was spent on what; how much there is left to do, and what that will cost, is there already."""
        spent = sorted(handoff.context.get("spent", {}).items(), key=lambda one: -one[1])
        handoff.notes += [f"Spent on {service}: ${dollars:.4f}" for service, dollars in spent]
        return handoff

    def _spend(self, unit: Unit, **dollars: float) -> None:
        """Counts a cost, and what for: the context is the account of the whole chain."""
        unit.spend(cost=sum(dollars.values()))
        account = unit.context.setdefault("spent", {})
        for service, amount in dollars.items():
            account[service] = account.get(service, 0.0) + amount

    def _most(self, size: int) -> dict[str, float]:
        """What a text of so many bytes costs at most, by service."""
        return {
            "get": self.prices.get,
            "transfer": size * self.prices.gigabyte / 1e9,
            "model": self._model_price(size / BYTES_PER_TOKEN + 100, ANSWER_TOKENS),
            "put": self.prices.put,
        }

    def _model_price(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * self.prices.million_tokens_in + tokens_out * self.prices.million_tokens_out) / 1e6


summarise_bucket = CostLimited.as_flow(
    name="summarise-bucket",
    budget=Budget(cost=Limit("cost", 5.0, scope="total")),
)

if __name__ == "__main__":
    summarise_bucket.serve(name="cost-limited", description=CostLimited.task())

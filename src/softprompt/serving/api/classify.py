"""POST /v1/classify: texts or rows in, labels and probabilities out, as ``Prompt.classify`` gives them."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from softprompt.data.rows import Encoded
from softprompt.evaluation.choices import probabilities
from softprompt.generation.request import CandidateLogprobs, ScoreRequest
from softprompt.library.prompt import Text
from softprompt.serving.api.answers import cut_notes, with_notes
from softprompt.serving.api.errors import ERRORS, bad_request
from softprompt.serving.api.guard import texts_in
from softprompt.serving.api.replies import Classified
from softprompt.serving.api.schemas import ClassifyRequest
from softprompt.serving.api.stream import attended
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.visit import Visit, visiting

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/classify", response_model=Classified, responses=ERRORS, tags=["answers"])
async def classify(request: Request, body: ClassifyRequest) -> Response:
    """Tell the label of texts or rows, with the probability of every label."""
    return await attended(request, _classified(request, body))


async def _classified(request: Request, body: ClassifyRequest) -> Response:
    async with visiting(request, body.model) as visit:
        most = visit.serving.bounds.answers
        if len(body.input) > most:
            raise bad_request(
                f"input holds {len(body.input):,} rows, but one request may hold {most:,}.", "input"
            )
        letters = sum(map(len, texts_in(body.input)))
        rows = await visit.tokenised(letters, "input", _encoded, visit, body.input)
        found = await _scored(visit, [visit.version.score_row(encoded) for encoded, _ in rows])
        data = []
        for index, ((encoded, answers), likelihoods) in enumerate(zip(rows, found, strict=True)):
            shares = probabilities(encoded, answers, likelihoods)
            data.append({"index": index, "label": next(iter(shares)), "probabilities": shares})
        about = {"object": "list", "model": visit.version.name, "data": data, "usage": visit.tally.usage}
        notes = cut_notes([bool(encoded.truncated) for encoded, _ in rows])
        return JSONResponse(with_notes(about, notes))


def _encoded(visit: Visit, inputs: Sequence[Text]) -> list[tuple[Encoded, list[str]]]:
    """Every row in tokens, with the answers it may get."""
    version = visit.version
    prompt = version.prompt
    if prompt is None or not prompt.template.compares:
        raise bad_request(f"{version.name} was learnt without labels; use /v1/completions.", "model")
    found = []
    for row in inputs:
        answers = prompt.template.answers({} if isinstance(row, str) else row)
        encoded = visit.serving.guard.encoded(prompt, version.prefix, row)
        for asked in version.score_row(encoded):
            visit.check_room(len(asked.ids), asked.longest, "input")
        found.append((encoded, list(answers)))
    return found


async def _scored(visit: Visit, rows: Sequence[Sequence[ScoreRequest]]) -> list[list[tuple[float, ...]]]:
    """The likelihoods every row asks for; equal requests, such as of empty inputs, are done once."""
    keys = [[(asked.ids, asked.candidates) for asked in row] for row in rows]
    asked: dict[object, ScoreRequest] = {}
    for row, own in zip(rows, keys, strict=True):
        asked |= {key: one for key, one in zip(own, row, strict=True) if key not in asked}
    crowd = await visit.crowd(list(asked.values()))
    names, found = list(asked), dict[object, tuple[float, ...]]()
    async for number, event in visit.events(crowd):
        if isinstance(event, CandidateLogprobs):
            found[names[number]] = event.values
    # What was sent counts as used: not the empty input to calibrate by, and equal rows each.
    visit.tally.prompt = sum(len(row[0].ids) for row in rows)
    visit.tally.virtual = visit.version.prefix.length * len(rows)
    return [[found[key] for key in own] for own in keys]

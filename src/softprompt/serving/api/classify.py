"""POST /v1/classify: texts or rows in, labels and probabilities out, as ``Prompt.classify`` gives them."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from softprompt.library.prompt import Text
from softprompt.serving.api.errors import ERRORS, bad_request
from softprompt.serving.api.guard import texts_in
from softprompt.serving.api.replies import Classified
from softprompt.serving.api.schemas import ClassifyRequest
from softprompt.serving.api.stream import attended
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.visit import Visit, off_loop, visiting
from softprompt.serving.job import Compared, Comparison
from softprompt.serving.verdict import Question

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
        questions = await off_loop(sum(map(len, texts_in(body.input))), _questions, visit, body.input)
        found = await _compared(visit, questions)
        data = []
        for index, (asked, likelihoods) in enumerate(zip(questions, found, strict=True)):
            shares = asked.probabilities(likelihoods)
            data.append({"index": index, "label": next(iter(shares)), "probabilities": shares})
        about = {"object": "list", "model": visit.version.name, "data": data, "usage": visit.tally.usage}
        return JSONResponse(about)


def _questions(visit: Visit, inputs: Sequence[Text]) -> list[Question]:
    version = visit.version
    prompt = version.prompt
    if prompt is None or not prompt.template.compares:
        raise bad_request(f"{version.name} was learnt without labels; use /v1/completions.", "model")
    found = []
    for row in inputs:
        answers = prompt.template.answers({} if isinstance(row, str) else row)
        asked = Question(version, visit.serving.guard.encoded(prompt, version.prefix, row), answers)
        for job in asked.comparisons:
            visit.check_room(len(job.ids), max(map(len, job.candidates)) if job.whole else 0, "input")
        found.append(asked)
    return found


async def _compared(visit: Visit, questions: Sequence[Question]) -> list[list[tuple[float, ...]]]:
    """The likelihoods of every question's comparisons; equal ones, such as of empty inputs, are done once."""
    keys = [[(job.ids, job.candidates) for job in asked.comparisons] for asked in questions]
    jobs: dict[object, Comparison] = {}
    for asked, own in zip(questions, keys, strict=True):
        jobs |= {key: job for key, job in zip(own, asked.comparisons, strict=True) if key not in jobs}
    crowd = await visit.crowd(list(jobs.values()))
    names, found = list(jobs), dict[object, tuple[float, ...]]()
    async for number, event in visit.events(crowd):
        if isinstance(event, Compared):
            found[names[number]] = event.likelihoods
    # What was sent counts as used: not the empty input to calibrate by, and equal rows each.
    visit.tally.prompt = sum(len(asked.comparisons[0].ids) for asked in questions)
    visit.tally.virtual = visit.version.prefix.length * len(questions)
    return [[found[key] for key in own] for own in keys]

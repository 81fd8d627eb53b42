"""After a run: what the model itself would have answered, and how far a different answer is from that."""

from chaos.results import ResultsDirectory
from chaos.worlds.world import World
from cluster.engine.reference import first_difference
from workloads.schedule import ScheduledRequest, unique_prompts


async def consult(world: World, results: ResultsDirectory, schedule: list[ScheduledRequest]) -> None:
    """Write `references.parquet`, and `token_gaps.parquet` for the streams that differ, from their first difference."""
    # Much of a closed load is planned and never asked.
    asked = {prompt_id for _, prompt_id, _ in results.completions()}
    prompts = unique_prompts(request for request in schedule if request.prompt_id in asked)
    references = await world.references(prompts)
    if references is None:
        return
    results.write_references(references)
    differing: list[tuple[str, int]] = []
    cases: list[tuple[tuple[int, ...], list[int]]] = []
    for request_id, prompt_id, delivered in results.completions():
        index = first_difference(delivered, references.get(prompt_id, []))
        if index is not None:
            differing.append((request_id, index))
            cases.append((prompts[prompt_id][0], delivered))
    measured = await world.token_gaps(cases) if cases else []
    rows = [
        (request_id, index, gaps[index])
        for (request_id, first), gaps in zip(differing, measured, strict=True)
        for index in range(first, len(gaps))
    ]
    results.write_token_gaps(rows)

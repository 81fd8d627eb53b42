"""`python -m analysis.serve [RESULTS]`: a browser of runs: find, open and compare them, see trends and what runs now.

It only reads, and listens on loopback unless `--host` says otherwise.
"""

import argparse
import asyncio
import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from analysis import trend
from analysis.arguments import port
from analysis.baselines import read_side
from analysis.findings import findings
from analysis.history import UnreadableError
from analysis.regression import NotComparable, compare_sides
from analysis.rendering import html_template
from analysis.runs import Filter, Listed, Shelf

EXIT_USAGE = 2
PORT = 8600
SHOWN_MAX = 200
LIVE_EVERY_S = 2
_FILES = {
    "report.html": "text/html",
    "report.md": "text/plain",
    "junit.xml": "text/plain",
    "verdict.json": "application/json",
    "run.json": "application/json",
    "environment.json": "application/json",
    "experiment.yaml": "text/plain",
}
"""What of a run may be read, and as what."""
_HEADERS = {
    # Nothing that a run wrote may run as a script, whoever wrote it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Browser:
    """The pages about the runs below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._shelf = Shelf(root)

    def application(self, hosts: Sequence[str]) -> web.Application:
        """The web application. hosts: names under which it may be asked for, empty: any."""
        application = web.Application(middlewares=[_guarded(hosts)])
        application.add_routes(
            [
                web.get("/", self.index),
                web.get("/compare", self.compare),
                web.get("/trend", self.trend),
                web.get("/live", self.live),
                web.get("/findings", self.findings),
                web.get("/runs/{path:.+}/{file}", self.file),
            ]
        )
        return application

    async def index(self, request: web.Request) -> web.Response:
        """All runs, or those that pass the filter."""
        wanted = Filter(**{name: request.query.get(name, "") for name in Filter.__struct_fields__})
        runs = self._shelf.runs()
        passing = [run for run in runs if wanted.passes(run)]
        choices = {
            "experiment": sorted({run.info.experiment for run in runs}),
            "world": sorted({run.info.world for run in runs}),
            "state": sorted({run.state for run in runs}),
            "entry": sorted({run.entry for run in runs if run.entry}),
        }
        return _page(
            "runs.html.j2", runs=passing[:SHOWN_MAX], found=len(passing), all=len(runs), wanted=wanted, choices=choices
        )

    async def file(self, request: web.Request) -> web.Response:
        """A file of a run."""
        name = request.match_info["file"]
        run = self._shelf.find(request.match_info["path"])
        if run is None or name not in _FILES:
            raise web.HTTPNotFound(text="no such run, or no such file of it")
        try:
            body = (self._shelf.folder(run) / name).read_bytes()
        except OSError:
            raise web.HTTPNotFound(text=f"this run has no {name}: `python -m analysis.report DIR` makes it") from None
        return web.Response(body=body, content_type=_FILES[name], charset="utf-8")

    async def compare(self, request: web.Request) -> web.Response:
        """Two runs beside each other."""
        chosen = [self._chosen(path) for path in request.query.getall("run", [])]
        if len(chosen) != 2:
            raise web.HTTPBadRequest(text=f"choose two runs to compare, not {len(chosen)}")
        base, candidate = sorted(chosen, key=lambda run: run.info.run_id)
        try:
            compared = compare_sides(*(read_side(self._shelf.folder(run)) for run in (base, candidate)))
        except (NotComparable, UnreadableError) as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        return _page("compare.html.j2", base=base, candidate=candidate, compared=compared)

    async def trend(self, request: web.Request) -> web.Response:
        """A criterion of an experiment over its runs."""
        experiment, criterion = request.query.get("experiment", ""), request.query.get("criterion", "")
        world, entry = request.query.get("world", ""), request.query.get("entry", "")
        runs = [
            run
            for run in reversed(self._shelf.runs())
            if run.info.experiment == experiment and world in ("", run.info.world) and run.criteria
            and entry in ("", run.entry)
        ]
        # Checks of the runs themselves come last: what somebody looks for first is what the experiment asks.
        names = sorted({name for run in runs for name in run.criteria}, key=lambda name: ("self-check" in name, name))
        if not criterion and names:
            criterion = names[0]
        points = trend.points(runs, criterion)[-SHOWN_MAX:]
        return _page(
            "trend.html.j2", experiment=experiment, world=world, entry=entry, criterion=criterion, names=names,
            points=points, plots=trend.draw(points),
        )  # fmt: skip

    async def live(self, request: web.Request) -> web.Response:
        """What runs now."""
        running = [run for run in self._shelf.runs() if run.progress is not None]
        return _page("live.html.j2", running=running, every_s=LIVE_EVERY_S)

    async def findings(self, request: web.Request) -> web.Response:
        """What has failed over all runs, what to fix first on top."""
        found = await asyncio.to_thread(findings, self._root)
        return _page("findings.html.j2", findings=found[:SHOWN_MAX])

    def _chosen(self, path: str) -> Listed:
        run = self._shelf.find(path)
        if run is None:
            raise web.HTTPNotFound(text="no such run")
        return run


def _page(template: str, **content: object) -> web.Response:
    return web.Response(text=html_template(template).render(content), content_type="text/html", charset="utf-8")


def _guarded(hosts: Sequence[str]) -> Middleware:
    """Add the headers, and refuse who asks under another name: a page elsewhere may have its name lead here."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if hosts and urlsplit(f"//{request.host}").hostname not in hosts:
            raise web.HTTPForbidden(text=f"this browser of runs answers to {', '.join(hosts)} only")
        try:
            response = await handler(request)
        except web.HTTPException as refused:
            refused.headers.update(_HEADERS)
            raise
        response.headers.update(_HEADERS)
        return response

    return guarded


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.serve", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="default %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=port, default=PORT, help="default %(default)s; 0: any free one")
    options = parser.parse_args(arguments)
    if not options.results.is_dir():
        print(f"analysis.serve: {options.results}: no such folder; name the one that holds your runs", file=sys.stderr)
        return EXIT_USAGE
    hosts = ("127.0.0.1", "localhost", "::1") if _is_loopback(options.host) else ()
    application = Browser(options.results.resolve()).application(hosts)
    try:
        web.run_app(application, host=options.host, port=options.port, print=_say, access_log=None)
    except OSError as error:
        print(f"analysis.serve: {options.host}:{options.port}: cannot listen: {error.strerror}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

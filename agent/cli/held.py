"""`held`, `approve`, `deny`: orders that wait for the operator's word on their images.

Whatever an image says of itself was written by a stranger: it is shown with its control characters visible, long values cut.
"""

from collections.abc import Iterator
from typing import Annotated

import typer

from agent.api.views import HeldJob, HeldPage, ImageFiles, ImageView, RulingView
from agent.cli.here import Desk, here_of
from agent.cli.out import JsonFlag, print_json, say, short, size, warn, when
from agent.domain.approvals import Verdict
from agent.domain.images import ImageAbout, ImageEntry
from agent.domain.strict_json import encode

MOST_LINES = 40  # of labels, variables or layers that are printed; --json has all
MOST_CHARACTERS = 300  # of one value

MARKS = {"file": "-", "folder": "d", "symbolic link": "l", "hard link": "h"}
BITS = "rwxrwxrwx"

ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the record of this host.")
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="IMAGE|ORDER", help="An image's digest, or an order's id.")
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(held)
    app.command()(approve)
    app.command()(deny)


# ------------------------------------------------------------------ looking


def held(
    context: typer.Context,
    image: Annotated[
        str | None, typer.Argument(metavar="[IMAGE]", help="An image's digest: show what is in it.")
    ] = None,
    files: Annotated[bool, typer.Option("--files", help="With IMAGE: also list every file.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the orders that wait for your word on their images, or show what one image holds before it may run."""
    with here_of(context).operator() as desk:
        if image is None:
            page = desk.get("/v1/held", HeldPage)
            print_json(page) if as_json else _print_page(page)
            return
        view = desk.get(image_path(image), ImageView)
        listed = _files(desk, image) if files and view.description and view.description.about else iter(())
        if as_json:
            print_json({"image": view, "files": list(listed)} if files else view)
            return
        _print_image(view)
        if files:
            for entry in listed:
                say(file_line(entry))


def image_path(image: str, part: str = "") -> str:
    """The path of an image that the command line names."""
    from urllib.parse import quote

    return f"/v1/images/{quote(image, safe=':')}{part}"


def _files(desk: Desk, image: str) -> Iterator[ImageEntry]:
    """Every entry that was listed, page by page."""
    page: int | None = 0
    while page is not None:
        answer = desk.get(image_path(image, f"/files?page={page}"), ImageFiles)
        yield from answer.entries
        page = answer.next


def file_line(entry: ImageEntry) -> str:
    """One entry as `ls -l` would write it, with its layer before it."""
    arrow = f" -> {entry.link}" if entry.link else ""
    return f"{entry.layer:>3} {mode_text(entry)} {entry.size_bytes:>12} /{entry.path}{arrow}"


def mode_text(entry: ImageEntry) -> str:
    """Kind and mode as `ls -l` writes them: drwxr-xr-x, -rwsr-xr-x."""
    bits = [letter if entry.mode & (0o400 >> place) else "-" for place, letter in enumerate(BITS)]
    for bit, place, letter in ((0o4000, 2, "s"), (0o2000, 5, "s"), (0o1000, 8, "t")):
        if entry.mode & bit:
            bits[place] = letter if bits[place] == "x" else letter.upper()
    return MARKS.get(entry.kind, "?") + "".join(bits)


def _print_page(page: HeldPage) -> None:
    if not page.held:
        say("nothing waits for you")
        return
    for job in page.held:
        say(f"order {job.order}: {job.task} task {job.position} on dataset {job.dataset}")
        say(
            f"  asked for by {short(job.orchestrator)}, came from {short(job.sender)}, until {when(job.expires)} UTC"
        )
        for image in job.images:
            standing = _standing(image.is_admitted, image.is_read, image.problem)
            say(f"  {image.role:<7} {image.digest}  {standing}")
    say("look: dc-compute held IMAGE --files · decide: dc-compute approve IMAGE or dc-compute deny IMAGE")


def _standing(is_admitted: bool, is_read: bool, problem: str | None) -> str:
    if is_admitted:
        return "admitted"
    if problem is not None:
        return f"cannot be loaded: {problem}"
    return "waits for you" if is_read else "waits for you; not read yet"


def _print_image(view: ImageView) -> None:
    say(f"image        {view.digest}")
    if view.is_listed:
        say("policy       its file lists it")
    for ruling in view.rulings:
        by = "" if ruling.uid is None else f" by user {ruling.uid}"
        say(
            f"{ruling.verdict:<12} {when(ruling.at)} UTC{by}{'' if ruling.reason is None else f': {ruling.reason}'}"
        )
    for job in view.asked_by:
        say(f"asked for    {_asked(job)}")
    found = view.description
    if found is None:
        say(
            "content      not read: nothing waits for it, or a worker has still to fetch it (its log says why)"
        )
        return
    say(f"archive      {size(found.archive_bytes)}, read {when(found.read_at)} UTC")
    if found.about is None:
        say(f"refused      {found.problem}")
        say("It would not be loaded even if you approved it.")
    else:
        _print_about(found.about)


def _asked(job: HeldJob) -> str:
    return (
        f"by {short(job.orchestrator)} in order {job.order}, {job.task} task {job.position} on dataset {job.dataset}, "
        f"until {when(job.expires)} UTC"
    )


def _print_about(about: ImageAbout) -> None:
    say(f"platform     {about.platform}")
    say(f"entrypoint   {_cut(' '.join(about.entrypoint))}")
    _print_many("env", [f"{name}={value}" for name, value in about.env])
    _print_many("label", [f"{name}={value}" for name, value in about.labels])
    _print_many(
        "layer",
        [f"{layer.digest}  {size(layer.size_bytes)}, {layer.entries} entries" for layer in about.layers],
    )
    set_ids = f", {about.set_ids} with a set-id bit" if about.set_ids else ""
    cut = " (the listing is cut: it names fewer)" if about.is_cut else ""
    say(f"unpacked     {size(about.size_bytes)} in {about.entries} entries{set_ids}{cut}")


def _print_many(name: str, lines: list[str]) -> None:
    for line in lines[:MOST_LINES]:
        say(f"{name:<12} {_cut(line)}")
    if len(lines) > MOST_LINES:
        say(f"{name:<12} … and {len(lines) - MOST_LINES} more: --json shows all")


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}… ({len(text)} characters)"


# ------------------------------------------------------------------ deciding


def approve(
    context: typer.Context, target: TargetArgument, reason: ReasonOption = None, as_json: JsonFlag = False
) -> None:
    """Let an image run here, or the images that an order waits for. Nothing else is widened by it."""
    _rule(context, target, Verdict.APPROVED, reason, as_json=as_json)


def deny(
    context: typer.Context, target: TargetArgument, reason: ReasonOption = None, as_json: JsonFlag = False
) -> None:
    """Refuse an image, or the images that an order waits for: also in later orders, and where the policy lists it."""
    _rule(context, target, Verdict.DENIED, reason, as_json=as_json)


def _rule(
    context: typer.Context, target: str, verdict: Verdict, reason: str | None, *, as_json: bool
) -> None:
    body = encode({"target": target, "verdict": verdict, "reason": reason})
    with here_of(context).operator() as desk:
        view = desk.post("/v1/rulings", body, RulingView)
    stands = [ruling.image for ruling in view.rulings if ruling.verdict is not verdict]
    if as_json:
        print_json(view)
    else:
        for ruling in view.rulings:
            say(f"{ruling.verdict} {ruling.image} ({when(ruling.at)} UTC)")
        for job, state in view.jobs.items():
            say(f"job {job} is {state}")
        if not view.rulings:
            say("nothing to decide: the policy's file lists every image of that order")
    for image in stands:
        warn(
            f"your earlier word on {image} stands: an order's id means only what nobody ruled on; name the image"
        )
    if stands or (verdict is Verdict.DENIED and not view.rulings):
        raise typer.Exit(1)

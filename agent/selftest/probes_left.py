"""Attempts by what is left or brought: outputs, scores, images, models. Data only."""

from agent.selftest.probe import Probe, Scene

SUM = "more than|the run ended with disk"
SCORE = "performance.json"

# ------------------------------------------------------------------ what it leaves


def _left(name: str, attempt: str, what: str, words: str, *, scene: Scene = Scene.OUTPUTS) -> Probe:
    return Probe(
        name=name,
        attempt=attempt,
        expected=f"refused: {words.partition('|')[0]}",
        pattern=f"refused: .*({words}).*",
        scene=scene,
        act=("leave", f"/data/model/{name}", what),
    )


OUTPUTS = (
    _left("output-symlink", "leave a link to /etc/passwd as its model", "symlink", "symbolic link"),
    _left("output-symlink-up", "leave a link out of its folder", "symlink-folder", "symbolic link"),
    _left("output-hard-link", "leave one file under two names", "hard-link", "hard link"),
    _left("output-fifo", "leave a fifo, on which a reader waits for ever", "fifo", "fifo"),
    _left("output-socket", "leave a socket", "socket", "socket"),
    _left("output-device", "leave a device", "device", "device"),
    _left("output-set-id", "leave a set-id program", "set-id", "set-id"),
    _left("output-sparse", "leave a sparse file", "sparse", "sparse"),
    _left("output-deep", "leave folders 20 deep", "deep:20", "is refused|deeper than"),
    _left("output-abyss", "leave folders 400 deep", "deep:400", "too deep"),
    _left("output-control-name", "leave a name that steers a terminal", "control-name", "cannot be printed"),
    _left("output-bytes-name", "leave a name that is not UTF-8", "bytes-name", "not UTF-8"),
    _left("output-long-name", "leave a name of 2 KiB", "long-name", "too long"),
    Probe(
        name="output-closed", attempt="leave what the agent may not read", expected="taken: 1 file",
        scene=Scene.OUTPUTS, act=("leave", "/data/model/output-closed", "closed"),
    ),
    _left("score-nan", "report a score that is no number", "performance:nan", SCORE),
    _left("score-infinite", "report an infinite score", "performance:infinite", SCORE),
    _left("score-words", "report words as its score", "performance:words", SCORE),
    _left("score-another", "report on a dataset that was not in the task", "performance:another", "not in the task"),
    _left("score-twice", "report two scores under one name", "performance:twice", SCORE),
    _left("score-deep", "report brackets 5000 deep", "performance:deep", SCORE),
    _left("score-enormous", "report 2 MiB", "performance:enormous", "over"),
    _left("output-files", "leave 300 files, ceiling 200", "files:300", SUM, scene=Scene.FILLER),
    _left("output-bytes", "leave 10 MiB in 80 files, ceiling 8 MiB", "bytes:80:131072", SUM, scene=Scene.FILLER),
)  # fmt: skip

# ------------------------------------------------------------------ archives


def _archive(name: str, attempt: str, scene: Scene, words: str) -> Probe:
    return Probe(
        name=name,
        attempt=attempt,
        expected=f"refused: {words}",
        pattern=f"refused: .*{words}.*",
        scene=scene,
        act=(name,),
    )


ARCHIVES = (
    _archive("image-traversal", "an image that unpacks to ../../", Scene.IMAGES, "outside"),
    _archive("image-absolute", "an image that unpacks to an absolute path", Scene.IMAGES, "outside"),
    _archive("image-link-at-data", "an image whose /data is a link to /etc", Scene.IMAGES, "link"),
    _archive("image-through-link", "an image that unpacks through its own link", Scene.IMAGES, "link"),
    _archive("image-device", "an image with a device", Scene.IMAGES, "file, folder or link"),
    _archive("image-bomb", "an image that unpacks to 64 GiB", Scene.IMAGES, "more than"),
    _archive("image-env", "an image that asks for every variable of the host", Scene.IMAGES, "KEY=VALUE"),
    _archive("image-annotation", "an image that tells the runtime to run a hook", Scene.IMAGES, "annotation"),
    _archive("image-other-layer", "an image with a layer that its papers do not name", Scene.IMAGES, "not what the"),
    _archive("model-traversal", "a model that unpacks to ../../", Scene.MODELS, "outside"),
    _archive("model-absolute", "a model that unpacks to an absolute path", Scene.MODELS, "outside"),
    _archive("model-link", "a model with a link to /etc/passwd", Scene.MODELS, "regular file or folder"),
    _archive("model-hard-link", "a model with a hard link", Scene.MODELS, "regular file or folder"),
    _archive("model-device", "a model with a device", Scene.MODELS, "regular file or folder"),
    _archive("model-bomb", "a model that claims 1 TiB", Scene.MODELS, "more than"),
    _archive("model-sparse", "a model with a sparse member", Scene.MODELS, "sparse"),
    _archive("model-twice", "a model with one name twice", Scene.MODELS, "twice"),
    _archive("model-files", "a model of 300 files, ceiling 200", Scene.MODELS, "more than 200"),
)  # fmt: skip

LEFT = (*OUTPUTS, *ARCHIVES)

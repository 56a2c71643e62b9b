"""Models by their id on Hugging Face's hub: fetched once, then found in its cache."""

import re
from pathlib import Path

from diptych.interop.published import INDEX

# Weights, settings, vocabularies and templates; no code, no pickles, no second copy of the weights in another form.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
UNWANTED = ["*/*", "consolidated*"]
# Of a painter, which has its parts in folders: no checker, no halves beside the whole, nothing for other engines.
OF_PAINTERS = [INDEX, *(f"*/*.{ending}" for ending in ("safetensors", "json", "txt", "model"))]
NOT_OF_PAINTERS = ["safety_checker/*", "*.fp16.*", "*.non_ema*", "*flax*", "*onnx*", "*openvino*", "*/*/*"]


def is_id(name: str) -> bool:
    """Whether a name may be an id, "org/name", and is not a path into a folder that is here."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None and not Path(name).parent.is_dir()


def fetch(id: str) -> Path:
    """The directory of a model in the hub's cache, fetched if it is not there.

    Raises:
        ValueError: it is not there and cannot be fetched; the message says what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        if (Path(snapshot_download(id, allow_patterns=[INDEX])) / INDEX).is_file():
            return Path(snapshot_download(id, allow_patterns=OF_PAINTERS, ignore_patterns=NOT_OF_PAINTERS))
        return Path(snapshot_download(id, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except GatedRepoError as error:
        raise ValueError(
            f"'{id}' asks for an agreement: accept it at https://huggingface.co/{id}, then log in with 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"there is no model '{id}' on the hub (or it is private: 'hf auth login')") from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ValueError(
            f"'{id}' is neither a folder here nor in the hub's cache, and the hub cannot be reached. Where it can, "
            f"'hf download {id} --local-dir DIR' fetches it; bring DIR here and open it by its path"
        ) from error

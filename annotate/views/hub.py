"""`annotate push`: a shard directory with its card, as a data set of the Hugging Face hub.

What enters: a complete shard directory, a name such as owner/name. What leaves: the address of the commit. It is read
back with `--shards hf://datasets/owner/name` or downloaded with `hf download`.
"""

from annotate.views.card import CARD_NAME, EXAMPLE_NAME, write_card
from common.errors import UserError
from common.manifest import COPY_NAME, MANIFEST_NAME
from common.shards import ShardDirectory
from common.storage import Place


def push_shards(shards: Place, name: str, private: bool, eta: float) -> str:
    """Upload everything that the manifest names, the manifest and the card, in one commit.

    Raises:
        UserError: the directory is not whole, the name is wrong, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name.count("/") != 1:
        raise UserError(f"annotate push … {name}: expected owner/name.")
    directory = ShardDirectory(shards)  # checks the shards
    home = directory.path.local
    if home is None:
        raise UserError(f"annotate push {shards}: expected a directory on this machine. Copy it here first.")
    manifest = directory.manifest
    if not (home / CARD_NAME).is_file():
        write_card(shards, eta)
    files = [*(shard.file for shard in manifest.shards), *(file.file for file in manifest.files)]
    files += [MANIFEST_NAME, *(item for item in (COPY_NAME, CARD_NAME, EXAMPLE_NAME) if (home / item).is_file())]
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=home,
            allow_patterns=files,
            commit_message=f"Shards of {manifest.counts.documents:,} documents: {', '.join(manifest.columns)}",
        )
    except HFValidationError as error:
        raise UserError(f"annotate push … {name}: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"annotate push … {name}: the hub refuses or cannot be reached ({first}). `hf auth login` takes a "
            "token that may write there."
        ) from error
    return str(done.commit_url)

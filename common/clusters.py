"""What to say where Ray could not be joined or started: the same wherever this project starts it.

What enters: what Ray raised. What leaves: a `UserError`. Imports no Ray.
"""

from common.errors import UserError


def unreachable(error: Exception, address: str | None, otherwise: str = "") -> UserError:
    """Return the error for the user: what failed, and what to do.

    Args:
        error: of `ray.init`.
        address: the cluster's, from --address; None where Ray was to be started on this machine.
        otherwise: what else can be done, a sentence.
    """
    first = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if address is None:  # Ray gives itself half a minute, which a machine that is very busy can take
        text = f"a local Ray could not be started ({first}). The same command again goes on. {otherwise}"
    else:
        text = (
            f"the Ray cluster at --address {address} could not be reached ({first}). Check the address (`ray status`); "
            "a cluster with token authentication (what `ray start` sets up by default since Ray 2.60) needs "
            f"RAY_AUTH_MODE=token here and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN. {otherwise}"
        )
    return UserError(text.rstrip())

"""What to say where Ray could not be joined or started: the same wherever this project starts it.

What enters: what Ray raised. What leaves: a `UserError`. Imports no Ray.
"""

from common.errors import UserError


def unreachable(error: Exception, address: str | None, otherwise: str) -> UserError:
    """Return the error for the user: what failed, and what to do.

    Args:
        error: of `ray.init`.
        address: the cluster's, from --address; None where Ray was to be started on this machine.
        otherwise: what can be done without a cluster, a sentence.
    """
    where = f"the Ray cluster at --address {address}" if address else "a local Ray"
    first = (str(error).splitlines() or [""])[0]
    return UserError(
        f"{where} could not be reached or started ({type(error).__name__}: {first}). Check the address (`ray status`); "
        "a cluster with token authentication (what `ray start` sets up by default since Ray 2.60) needs "
        f"RAY_AUTH_MODE=token here and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN. {otherwise}"
    )

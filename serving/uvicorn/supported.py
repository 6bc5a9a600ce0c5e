"""Which Uvicorn this package supports, and the check that it is the installed one.

The classes in supervisor.py and websocket.py mark with `@override` each method that replaces one of
Uvicorn's. A method that a later Uvicorn renames would silently not be called any more; the check
makes that an error at the start.
"""

import uvicorn

from serving import settings

VERSION = "0.54"


def check_overrides(*classes: type) -> None:
    """Raise SettingError unless each method marked with `@override` exists in the base class."""
    for ours in classes:
        for name, member in vars(ours).items():
            function = member.fget if isinstance(member, property) else member
            if getattr(function, "__override__", False):
                # A class of ours lists Uvicorn's class last among its bases.
                check_attributes(ours.__bases__[-1], name)


def check_attributes(owner: object, *names: str) -> None:
    """Raise SettingError unless `owner`, a class or object of Uvicorn's, has all of these."""
    kind = owner if isinstance(owner, type) else type(owner).__bases__[-1]
    for name in names:
        if not hasattr(owner, name):
            raise settings.SettingError(
                f"uvicorn {uvicorn.__version__} has no {kind.__module__}.{kind.__qualname__}.{name}; "
                f"serving/uvicorn supports Uvicorn {VERSION}"
            )

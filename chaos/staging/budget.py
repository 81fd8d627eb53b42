"""How much harm a cluster has had today, on disk, and the lock that lets one run at a time near it.

Both go by who the cluster says that it is (chaos.staging.identity.cluster_key), not by what a target's file calls it.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from analysis.whole_file import write_whole
from chaos.target import Budget, TargetError
from chaos.toxiproxy.launcher import cache_directory


class Spent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a day. failed: requests. fault_s: seconds of fault that are over. open: time limits of those that are not."""

    day: date
    failed: Annotated[int, msgspec.Meta(ge=0)]
    fault_s: Annotated[float, msgspec.Meta(ge=0)]
    open: dict[str, Annotated[float, msgspec.Meta(ge=0)]]

    @property
    def reserved_s(self) -> float:
        """Seconds of fault, with the whole time limit of each whose heal is not proven."""
        return self.fault_s + sum(self.open.values())


class BudgetSpent(Exception):
    """The target has had all the harm that it may have today. One line."""


def staging_directory() -> Path:
    """Where what is known of targets is kept."""
    return cache_directory() / "staging"


@contextmanager
def locked(cluster: str) -> Iterator[None]:
    """In the block no other run of this user on this host is at the cluster of a key. Raises TargetError, OSError."""
    folder = staging_directory()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / f"{cluster}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetError(f"{cluster}: another run is at this cluster; wait for its end") from None
        yield
    finally:
        os.close(descriptor)


class DayBudget:
    """The budget of one cluster on one day. Only the run that holds the cluster's lock may charge it, in any thread."""

    def __init__(self, cluster: str, limits: Budget, day: date) -> None:
        """cluster: its key. limits: of the target's file; what has been spent counts for each file of the cluster."""
        self._path = staging_directory() / f"{cluster}.json"
        self._limits = limits
        self._day = day
        self._lock = threading.Lock()

    def spent(self) -> Spent:
        """Until now. Raises TargetError when that cannot be read: then nobody knows, and nothing may be done."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=Spent)
        except FileNotFoundError:
            return Spent(self._day, 0, 0.0, {})
        except (OSError, msgspec.MsgspecError) as error:
            raise TargetError(f"{self._path}: the day's harm cannot be read: {error}; mend or delete it") from None
        if found.day > self._day + timedelta(days=1):
            raise TargetError(f"{self._path}: is of {found.day}, which is to come; mend or delete it")
        # Where another file of the cluster goes by a zone that is a day ahead, its day is the one that is full.
        return found if found.day >= self._day else Spent(self._day, 0, 0.0, {})

    @property
    def failed_left(self) -> int:
        """Requests that may still fail today; negative when too many have."""
        return self._limits.failed_requests - self.spent().failed

    @property
    def fault_left_s(self) -> float:
        """Seconds of fault that are left today."""
        return self._limits.fault_s - self.spent().reserved_s

    def charge_failed(self, count: int) -> None:
        """So many more requests have failed. Raises TargetError, OSError."""
        with self._lock:
            spent = self.spent()
            self._write(msgspec.structs.replace(spent, failed=spent.failed + count))

    def begin(self, fault: str, ttl_s: float) -> None:
        """A fault is about to begin that lasts `ttl_s` at most. Raises BudgetSpent, TargetError, OSError."""
        with self._lock:
            spent = self.spent()
            left_s = self._limits.fault_s - spent.reserved_s + spent.open.get(fault, 0.0)
            if ttl_s > left_s:
                raise BudgetSpent(
                    f"budget.fault_s: {left_s:.1f} s of {self._limits.fault_s:g} s are left today, "
                    f"a fault counts with its time limit of {ttl_s:g} s until it is healed"
                )
            self._write(msgspec.structs.replace(spent, open={**spent.open, fault: ttl_s}))

    def end(self, fault: str, lasted_s: float) -> None:
        """It is healed after so many seconds. Raises TargetError, OSError."""
        with self._lock:
            spent = self.spent()
            left = {name: ttl_s for name, ttl_s in spent.open.items() if name != fault}
            self._write(msgspec.structs.replace(spent, fault_s=spent.fault_s + lasted_s, open=left))

    def _write(self, spent: Spent) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self._path, msgspec.json.encode(spent))

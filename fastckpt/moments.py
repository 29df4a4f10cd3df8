"""Dates, times and zones in JSON, and back: only as Python itself writes them, so that nothing is left to guess."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from fastckpt.errors import UnsupportedError
from fastckpt.texts import Record, array_of, decode_text, encode_text, found

__all__ = ["DECODERS", "ENCODERS"]

_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", re.ASCII)


def _encode_moment(moment: datetime | time) -> Record:
    record: Record = {type(moment).__name__: moment.replace(tzinfo=None).isoformat()}
    if moment.fold:
        record["fold"] = 1
    if moment.tzinfo is not None:
        record["tz"] = _encode_zone(moment.tzinfo)
    return record


def _encode_zone(zone: object) -> Record:
    if type(zone) is timezone:
        return _encode_timezone(zone)
    if type(zone) is ZoneInfo:
        return _encode_zoneinfo(zone)
    raise UnsupportedError(f"time zone {type(zone).__qualname__} cannot be stored; use a zoneinfo.ZoneInfo instead")


def _encode_timezone(zone: timezone) -> Record:
    offset = zone.utcoffset(None)
    record: Record = {"timezone": _triple(offset)}
    if zone.tzname(None) != timezone(offset).tzname(None):
        record["name"] = encode_text(zone.tzname(None))
    return record


def _encode_zoneinfo(zone: ZoneInfo) -> Record:
    if type(zone.key) is not str or not _ZONE.fullmatch(zone.key):
        raise UnsupportedError("a ZoneInfo without a usual name cannot be stored; use one made by its name")
    return {"zoneinfo": zone.key}


def _triple(delta: timedelta) -> list[int]:
    return [delta.days, delta.seconds, delta.microseconds]


def _decode_date(tag: str, kind: Any, record: Record) -> Any:
    """What fromisoformat() takes besides depends on the version of Python."""
    text = decode_text(record[tag])
    value = kind.fromisoformat(text)
    if value.isoformat() != text or getattr(value, "tzinfo", None) is not None:
        raise ValueError("not as isoformat() writes it")
    return value


def _decode_moment(tag: str, kind: Any, record: Record) -> Any:
    fold = record.get("fold", 0)
    if type(fold) is not int:
        raise ValueError("not a fold")
    zone = _decode_zone(record["tz"]) if "tz" in record else None
    return _decode_date(tag, kind, record).replace(fold=fold, tzinfo=zone)


def _decode_zone(data: object) -> timezone | ZoneInfo:
    if type(data) is dict and "timezone" in data and data.keys() <= {"timezone", "name"}:
        return _decode_timezone(data)
    if type(data) is dict and data.keys() == {"zoneinfo"}:
        return _decode_zoneinfo(data)
    raise ValueError("not a time zone")


def _decode_timezone(record: Record) -> timezone:
    offset = _decode_delta("timezone", record)
    return timezone(offset, decode_text(record["name"])) if "name" in record else timezone(offset)


def _decode_zoneinfo(record: Record) -> ZoneInfo:
    """Python looks in the system's folder of zones and, for want of it, in the package tzdata; nowhere else."""
    name = decode_text(record["zoneinfo"])
    if not _ZONE.fullmatch(name):
        raise ValueError("not the name of a zone")
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ImportError) as error:
        raise UnsupportedError(f"wanted the time zone {found(name)}, found none; install tzdata") from error


def _decode_delta(tag: str, record: Record) -> timedelta:
    data = array_of(record[tag], int, 3)
    delta = timedelta(*data)
    if _triple(delta) != data:
        raise ValueError("not as timedelta counts them")
    return delta


ENCODERS: dict[type, Callable[[Any], Record]] = {
    datetime: _encode_moment,
    time: _encode_moment,
    date: lambda day: {"date": day.isoformat()},
    timedelta: lambda delta: {"timedelta": _triple(delta)},
    timezone: _encode_timezone,
    ZoneInfo: _encode_zoneinfo,
}

DECODERS: dict[str, Callable[[Record], Any]] = {
    "datetime": lambda record: _decode_moment("datetime", datetime, record),
    "time": lambda record: _decode_moment("time", time, record),
    "date": lambda record: _decode_date("date", date, record),
    "timedelta": lambda record: _decode_delta("timedelta", record),
    "timezone": _decode_timezone,
    "zoneinfo": _decode_zoneinfo,
}

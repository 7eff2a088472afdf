"""What Google Cloud says before a slice is asked for: zone, accelerator type, quota, bucket."""

import json
import re

from launch import gcloud, tpu_types
from launch import shell as shells
from launch.gcloud import Place
from launch.shell import Shell
from launch.tpu_slice import Slice
from mmrl.suggest import suggest


def project(shell: Shell, place: Place) -> Place:
    """The place with its project named, as gcloud is set up.

    Raises:
      ValueError: gcloud is not installed, or not set up.
    """
    if place.project:
        return place
    done = shells.run(shell, ["gcloud", "config", "get-value", "project", "--quiet"], assumed="PROJECT")
    if done.status:
        install = "https://cloud.google.com/sdk/docs/install"
        raise ValueError(f"no Google Cloud: {shells.last_line(done)} ({install})")
    found = done.out.strip()
    if not found or found == "(unset)":
        raise ValueError("gcloud has no project: name one with --project")
    return Place(place.zone, found)


def offered(shell: Shell, wanted: Slice) -> str:
    """One line: the zone has slices of this type.

    Raises:
      ValueError: no such zone, or it has no such slices.
    """
    place, type_ = wanted.place, tpu_types.accelerator_type(wanted.topology)
    words = ["compute", "tpus", "accelerator-types", "list", "--format=value(type)"]
    done = gcloud.ask(shell, place, words, assumed=type_ or "")
    there = [] if done.status else done.out.split()
    if type_ in there or (there and type_ is None):
        return f"{place.zone} offers {type_ or str(wanted.topology)}"
    words = ["compute", "tpus", "locations", "list", "--format=value(locationId)"]
    zones = gcloud.ask(shell, place, words, zonal=False).out.split()
    if zones and place.zone not in zones:
        raise ValueError(f"--zone={place.zone} has no TPUs{suggest(place.zone, zones)}")
    if done.status:
        raise gcloud.refused(f"--zone={place.zone}", done.err.strip(), place)
    alike = [one for one in there if tpu_types.belongs(one, wanted.topology)]
    if alike:
        raise ValueError(f"{place.zone} has no {type_}: it has {', '.join(alike)}")
    raise ValueError(f"{place.zone} has no {type_}, nor others like it; zones with TPUs: {', '.join(zones)}")


def quota(shell: Shell, wanted: Slice) -> str:
    """One line on the project's quota for the slice. What cannot be known is said, and left to the service.

    Raises:
      ValueError: the quota is smaller than the slice.
    """
    named = tpu_types.quota(wanted.topology, wanted.tier)
    if named is None:
        return "of the reservation (not checked)"
    words = ["beta", "quotas", "info", "describe", named, "--service=tpu.googleapis.com", "--format=json"]
    done = gcloud.ask(shell, wanted.place, words, zonal=False, assumed="{}")
    if done.status:
        return f"{named} (not known: {shells.last_line(done)})"
    limit = _limit(json.loads(done.out), wanted.place.zone)
    if limit is None:
        return f"{named} (not stated for {wanted.place.zone})"
    # Some quotas count chips and some TensorCores; what is too small for chips is too small for either.
    if 0 <= limit < wanted.topology.chips:
        other = "--zone" if wanted.tier == "spot" else "--zone, or --spot"
        raise ValueError(
            f"quota {named} is {limit} in {wanted.place.zone}, and the slice has "
            f"{wanted.topology.chips} chips: ask for more, or take another {other}"
        )
    return f"{named}: {'unlimited' if limit < 0 else limit} in {wanted.place.zone}"


def _limit(told: dict, zone: str) -> int | None:
    for info in told.get("dimensionsInfos", ()):
        if zone in info.get("applicableLocations", ()) or info.get("dimensions", {}).get("zone") == zone:
            value = info.get("details", {}).get("value")
            return None if value is None else int(value)
    return None


def bucket(shell: Shell, place: Place, url: str) -> str:
    """One line on the bucket that holds the run.

    Raises:
      ValueError: it is not there, or cannot rename folders, which checkpoints need to be whole or not there.
    """
    if not re.fullmatch(r"gs://[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9](/[^\s/]+)*/?", url):
        raise ValueError(f"--bucket={url}: write gs://NAME or gs://NAME/FOLDER")
    root = "/".join(url.split("/")[:3])
    words = ["storage", "buckets", "describe", root, "--raw", "--format=json"]
    region = place.zone.rpartition("-")[0]
    assumed = json.dumps({"hierarchicalNamespace": {"enabled": True}, "location": region})
    done = gcloud.ask(shell, place, words, zonal=False, assumed=assumed)
    make = (
        f"gcloud storage buckets create {root} --location={region} --uniform-bucket-level-access "
        "--enable-hierarchical-namespace"
    )
    if gcloud.missing(done):
        raise ValueError(f"--bucket={url}: there is no {root}; make one with: {make}")
    if done.status:
        raise gcloud.refused(f"--bucket={url}", done.err.strip(), place)
    told = json.loads(done.out)
    if not (told.get("hierarchicalNamespace") or {}).get("enabled"):
        raise ValueError(
            f"--bucket={url}: {root} has no hierarchical namespace, so that folders cannot be renamed in one "
            f"step as checkpoints need; make another bucket, as in: {make}"
        )
    location = told.get("location", "").lower()
    far = "" if location == region else f" (in {location}, away from {region}: slower, and traffic costs)"
    return f"{url}{far}"

"""What Android does to programs in the background, as far as a program in Termux can see it, and what helps.

Since Android 12 the system ends child processes of apps ("phantom processes") once there are more than 32 over all apps
together, or when they use much processor time in the background: signal 9, no message. From 12L on a flag switches that
off, and from 14 on the developer options have a switch for it. The agent is one process and survives being killed, so
this costs time and not work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from pocketgrid_agent.findings import Finding, note, ok, warning

SDK_ANDROID_12, SDK_ANDROID_12L, SDK_ANDROID_14 = 31, 32, 34
PHANTOM_LIMIT = 32

ANSWER_SECONDS = 5.0

_ADB_WITHOUT_COMPUTER = (
    "without a computer: `pkg install android-tools`, switch on Wireless debugging in the developer options, then "
    "`adb pair localhost:PORT` and `adb connect localhost:PORT` with the ports shown there"
)


def examine(root: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Findings about this phone."""
    yield phantom_limit(_ask("getprop", "ro.build.version.sdk"), _ask_flag())
    count = count_processes(root, os.getuid())
    if count > PHANTOM_LIMIT // 2:
        yield warning(
            "processes",
            f"{count} processes of Termux run; Android ends some beyond {PHANTOM_LIMIT} over all apps",
            "end sessions and services you do not need",
        )
    else:
        yield ok("processes", f"{count} of Termux run")
    yield _api()
    yield _wake_lock()
    yield note(
        "battery-optimisation",
        "whether Android may put Termux to sleep cannot be seen from inside",
        "Settings > Apps > Termux > Battery > Unrestricted; some makers have more switches: dontkillmyapp.com",
    )
    yield _boot(Path(environment.get("HOME") or Path.home()))


def phantom_limit(sdk_text: str, flag: str) -> Finding:
    """What to make of the version of Android and of the flag.

    Args:
        sdk_text: of `getprop ro.build.version.sdk`; empty if it did not answer.
        flag: of `settings get global settings_enable_monitor_phantom_procs`; empty if it did not answer.
    """
    check = "phantom-processes"
    if not sdk_text.isdigit():
        return note(
            check, "the version of Android cannot be read",
            f"from Android 12 on, more than {PHANTOM_LIMIT} child processes over all apps are ended",
        )  # fmt: skip
    sdk = int(sdk_text)
    if sdk < SDK_ANDROID_12:
        return ok(check, f"this Android (SDK {sdk}) does not limit them")
    if flag == "false":
        return ok(check, "Android's limit is switched off")
    message = (
        f"Android (SDK {sdk}) may end the agent at any time (signal 9): more than {PHANTOM_LIMIT} child processes over "
        "all apps, or much processor time in the background; finished work survives it"
    )
    if not flag and sdk >= SDK_ANDROID_12L:
        message += "; whether that is switched off already cannot be seen from inside"
    steps = []
    if sdk >= SDK_ANDROID_14:
        steps.append("Settings > System > Developer options > Disable child process restrictions")
    if sdk >= SDK_ANDROID_12L:
        steps.append("or: adb shell settings put global settings_enable_monitor_phantom_procs false")
    else:
        steps.append(
            'adb shell "device_config set_sync_disabled_for_tests persistent; '
            'device_config put activity_manager max_phantom_processes 2147483647"'
        )
    steps.append(_ADB_WITHOUT_COMPUTER)
    return warning(check, message, "\n".join(steps))


def count_processes(root: Path, uid: int) -> int:
    """Processes of this user that can be seen below `root`/proc."""
    count = 0
    try:
        folders = list((root / "proc").iterdir())
    except OSError:
        return 0
    for folder in folders:
        try:
            count += folder.name.isdigit() and folder.stat().st_uid == uid
        except OSError:
            continue  # gone meanwhile, or hidden
    return count


def _api() -> Finding:
    command = shutil.which("termux-battery-status")
    if command is None:
        return warning(
            "termux-api",
            "is not installed: Android hides the battery from everybody else",
            "install the app Termux:API from where Termux came from, then `pkg install termux-api`",
        )
    if not _ask(command):
        return warning(
            "termux-api",
            f"did not answer within {ANSWER_SECONDS:.0f} s",
            "install the app Termux:API from where Termux came from (the package alone is not enough); open it once",
        )
    return ok("termux-api", "answers")


def _wake_lock() -> Finding:
    if shutil.which("termux-wake-lock") is None:
        return warning("wake-lock", "termux-wake-lock is not there", "pkg install termux-tools")
    return note(
        "wake-lock",
        "whether it is held cannot be seen from inside; without it Android stops the agent with the screen off",
        'run `termux-wake-lock`; Termux\'s notification then says "wake lock held"',
    )


def _boot(home: Path) -> Finding:
    scripts = home / ".termux/boot"
    try:
        there = any("pocketgrid" in script.name for script in scripts.iterdir())
    except OSError:
        there = False
    if there:
        return ok("autostart", f"a script in {scripts} starts it, if the app Termux:Boot is installed")
    return note(
        "autostart", "the agent is not started when the phone is", "install.sh writes a script for the app Termux:Boot"
    )


def _ask_flag() -> str:
    return _ask("settings", "get", "global", "settings_enable_monitor_phantom_procs")


def _ask(*command: str) -> str:
    """What a program answers in one line; empty if it does not."""
    try:
        answer = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout[:4096].decode(errors="replace").strip()

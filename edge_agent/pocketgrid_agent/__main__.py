"""The command `pocketgrid-agent`: reads options, opens the state, runs the agent, ends with a status that says why."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pocketgrid.clock import system_rng
from pocketgrid.errors import InvalidSpecError, PeerError, RefusedError, StoreError
from pocketgrid.history import HistoryFile
from pocketgrid.loglines import LineFormatter
from pocketgrid_agent import credentials, joining
from pocketgrid_agent import settings as options
from pocketgrid_agent.credentials import Credentials
from pocketgrid_agent.identity import State, open_state
from pocketgrid_agent.probe import MachineFacts

if TYPE_CHECKING:
    from pocketgrid_agent.backoff import Backoff
    from pocketgrid_agent.loop import Agent

DONE, FAILED, USAGE, REFUSED, STATE = 0, 1, 2, 3, 4

SLOT_NAME = "slot-"
"""How the threads that compute are called, in a module too heavy to be asked."""

log = logging.getLogger("pocketgrid_agent")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status, documented in --help."""
    parsed = options.parse(arguments, os.environ)
    facts = options.machine_facts(parsed)
    if parsed.command == "probe":
        print(json.dumps(_everything_known(facts), indent=2))
        return DONE
    if parsed.command == "status":
        return _status(parsed)
    if parsed.command == "doctor":
        from pocketgrid_agent.doctor import main as examine

        return examine(parsed, facts, os.environ)
    try:
        settings = options.settings_from(parsed, os.environ, facts)
    except ValueError as error:
        return _complain(error, USAGE)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    try:
        held = credentials.load(settings.state_dir)
        state = open_state(settings.state_dir, name=settings.name or (held.device if held is not None else ""))
    except InvalidSpecError as error:
        return _complain(error, USAGE)
    except StoreError as error:
        return _complain(error, STATE)
    try:
        if parsed.command == "join":
            return _join(settings, state)
        if (problem := _not_joined(settings, state, held)) is not None:
            return _complain(problem, USAGE)
        return _leave(asyncio.run(_run(settings, state, held)))
    except RefusedError as error:
        return _leave(_complain(error, REFUSED))
    except StoreError as error:
        return _leave(_complain(error, STATE))
    except PeerError as error:
        return _leave(_complain(error, FAILED))
    except Exception:
        log.exception("ended by something unforeseen; please report it")
        return _leave(FAILED)
    finally:
        state.close()


def _join(settings: options.Settings, state: State) -> int:
    assert settings.invitation is not None
    asyncio.run(joining.join(state.folder, state.name, settings.invitation, node_name=settings.node_name))
    print(f"joined as {state.name}; start the agent with `pocketgrid-agent run`")
    return DONE


def _not_joined(settings: options.Settings, state: State, held: Credentials | None) -> ValueError | None:
    """Why this device cannot run as it is, nor join by itself."""
    if settings.invitation is not None or (held is not None and held.device == state.name):
        return None
    command = "`pocketgrid-agent join HOST:PORT --token ... --ca-sha256 ...`"
    if held is None:
        return ValueError(f"this device has not joined a grid; ask its operator's people for a command like {command}")
    return ValueError(f"this device has joined as {held.device}, not as {state.name}; leave out --name, or {command}")


async def _joined(settings: options.Settings, state: State, held: Credentials | None, backoff: Backoff) -> Credentials:
    """The credentials that are held if they will do, else new ones, however long that takes."""
    asked = settings.invitation
    if held is not None and held.device == state.name and (asked is None or held.trusts(asked.ca_sha256)):
        return held
    assert asked is not None
    complaint = ""
    while True:
        try:
            return await joining.join(state.folder, state.name, asked, node_name=settings.node_name)
        except joining.NotReachedError as error:
            if str(error) != complaint:
                complaint = str(error)
                log.warning("cannot join yet cause=%s", error)
            await asyncio.sleep(backoff.next())


async def _run(settings: options.Settings, state: State, held: Credentials | None) -> int:
    # Imported late: gRPC costs a quarter of a second that --help and probe need not pay.
    from pocketgrid_agent.backoff import Backoff
    from pocketgrid_agent.loop import Agent
    from pocketgrid_agent.renewal import CredentialKeeper
    from pocketgrid_agent.stream import Target

    rng = system_rng()
    joined = await _joined(settings, state, held, Backoff(rng))
    keeper = CredentialKeeper(state.folder, joined, rng, settings.gateway)
    history = None
    if settings.history is not None:
        history = HistoryFile(settings.history, {"role": "agent", "device": state.name, "boot": state.boot_id})
    agent = Agent(settings, state, Target(keeper), Backoff(rng), recorder=history)
    _drain_on_signals(agent)
    renewing = asyncio.create_task(keeper.run(), name="renewal")
    try:
        await agent.run()
    finally:
        renewing.cancel()
        if history is not None:
            history.close()
    return DONE


def _drain_on_signals(agent: Agent) -> None:
    loop = asyncio.get_running_loop()
    signalled = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal signalled
        if signalled:
            # Whoever asks twice does not want to wait; what is finished is in the journal.
            os._exit(128 + number)
        signalled = True
        agent.drain("Terminated" if number is signal.SIGTERM else "Interrupted")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _status(parsed: argparse.Namespace) -> int:
    from pocketgrid_agent import status

    try:
        answer = status.ask(parsed.state_dir.expanduser())
    except status.NotRunningError as error:
        return _complain(error, FAILED)
    print(json.dumps(answer, indent=2) if parsed.json else status.describe(answer))
    return DONE


def _everything_known(facts: MachineFacts) -> dict[str, object]:
    from dataclasses import asdict

    from pocketgrid_agent.runtime import OnnxRuntime
    from pocketgrid_agent.tools import ANSWER_SECONDS, all_sensors

    sensors = all_sensors(gateway_is_local=False)
    sensors.settle(ANSWER_SECONDS)
    engine = OnnxRuntime(threads=1, spin=False)
    return {
        **facts.as_dict(),
        "engine": engine.description,
        "providers": engine.providers,
        "opset": engine.opset,
        "vitals": asdict(sensors.read()),
    }


def _leave(status: int) -> int:
    """End at once if a slot is still at work: Python's own way out would crash in the middle of the engine."""
    if any(thread.name.startswith(SLOT_NAME) for thread in threading.enumerate()):
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    return status


def _complain(error: Exception, status: int) -> int:
    print(f"pocketgrid-agent: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

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
from pocketgrid.errors import InvalidSpecError, RefusedError, StoreError
from pocketgrid.history import HistoryFile
from pocketgrid.loglines import LineFormatter
from pocketgrid_agent import settings as options
from pocketgrid_agent.identity import State, open_state
from pocketgrid_agent.probe import MachineFacts

if TYPE_CHECKING:
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
        state = open_state(settings.state_dir, name=settings.name)
    except InvalidSpecError as error:
        return _complain(error, USAGE)
    except StoreError as error:
        return _complain(error, STATE)
    try:
        return _leave(asyncio.run(_run(settings, state)))
    except RefusedError as error:
        return _leave(_complain(error, REFUSED))
    except StoreError as error:
        return _leave(_complain(error, STATE))
    except Exception:
        log.exception("ended by something unforeseen; please report it")
        return _leave(FAILED)
    finally:
        state.close()


async def _run(settings: options.Settings, state: State) -> int:
    # Imported late: gRPC costs a quarter of a second that --help and probe need not pay.
    from pocketgrid_agent.backoff import Backoff
    from pocketgrid_agent.loop import Agent
    from pocketgrid_agent.stream import Target

    target = Target(
        address=settings.gateway,
        ca_certificates=settings.ca_file.read_bytes() if settings.ca_file else None,
        secret=settings.join_secret,
        server_name=settings.tls_server_name,
    )
    history = None
    if settings.history is not None:
        history = HistoryFile(settings.history, {"role": "agent", "device": state.name, "boot": state.boot_id})
    agent = Agent(settings, state, target, Backoff(system_rng()), recorder=history)
    _drain_on_signals(agent)
    try:
        await agent.run()
    finally:
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

"""The plays of the AMQP 0-9-1 tutorials: the steps that `mqtool tutorial run` performs."""

import shlex

from mqtool.errors import ExitCode
from mqtool.plays import predictions
from mqtool.stage.stage import Play, Stage, lines_of
from mqtool.stage.terminal import Terminal, wait_until


def _hello_world(stage: Stage) -> None:
    sender, receiver = stage.terminals("sender", "receiver")

    stage.say("Nobody is receiving yet. Send a message anyway: it waits in a queue.")
    sender.run(f"mqtool send{stage.queue('hello')} 'Hello World!'")
    stage.say("Now start a receiver. It gets the message from the queue, then waits for more.")
    receiver.start(f"mqtool receive{stage.queue('hello')}")
    receiver.wait_for("[x] Received", 1)
    stage.say("The receiver is waiting, so the next message arrives immediately.")
    sender.run(f"mqtool send{stage.queue('hello')} 'Good morning!'")
    receiver.wait_for("[x] Received", 2)
    receiver.interrupt()

    stage.expect(
        "the receiver got both messages, including the one sent before it started",
        receiver.after("[x] Received "),
        ["Hello World!", "Good morning!"],
    )


HELLO_WORLD = Play(
    "Hello World",
    "A sender, a receiver, and a queue between them that keeps messages until they are received.",
    _hello_world,
    queues=("hello",),
)


_QUICK_TASK = ["a", "b", "c", "d", "e"]
#: Three dots are three seconds of work, long enough for the picture to show that the other worker does all quick tasks.
_LONG_TASK = "long..."


def _work_queues(stage: Stage) -> None:
    """Show fair dispatch, round-robin dispatch, a killed worker, a forgotten acknowledgement and a restarted broker."""
    boss, one, two = stage.terminals("boss", "worker 1", "worker 2")
    _fair_dispatch(stage, boss, [one, two])
    _round_robin(stage, boss, [one, two])
    _killed_worker(stage, boss, one, two)
    _forgotten_acknowledgement(stage, boss, one, two)
    if not stage.place.apart and not stage.place.protocol:  # a play restarts only a broker that was started for it
        _restarted_broker(stage, boss, one, two)


def _fair_dispatch(stage: Stage, boss: Terminal, workers: list[Terminal]) -> None:
    limit = "prefetch 1 (in AMQP 1.0, a credit of 1)" if stage.place.protocol else "prefetch 1"
    stage.say(
        "Two workers share a queue. The boss sends a long task (three dots: three seconds of work) and five quick "
        f"ones. With {limit}, a worker gets its next task only when it has finished the last one.",
        predictions.FAIR_DISPATCH,
    )
    busy, other = _share(stage, boss, workers, f"mqtool worker{stage.declared_queue('task_queue')}")
    stage.expect(
        f"fair dispatch: {busy.name} did the long task, {other.name} the five quick ones",
        (_tasks_of(busy), _tasks_of(other)),
        ([_LONG_TASK], _QUICK_TASK),
    )


def _round_robin(stage: Stage, boss: Terminal, workers: list[Terminal]) -> None:
    stage.say(
        "Now without a limit (--prefetch 0): the broker delivers all tasks immediately, in turn, however long each "
        "takes.",
        predictions.ROUND_ROBIN,
    )
    busy, other = _share(stage, boss, workers, f"mqtool worker{stage.declared_queue('task_queue')} --prefetch 0")
    stage.expect(
        f"round-robin: two quick tasks waited behind the long one while {other.name} was idle",
        (_tasks_of(busy), _tasks_of(other)),
        ([_LONG_TASK, "b", "d"], ["a", "c", "e"]),
    )


def _share(stage: Stage, boss: Terminal, workers: list[Terminal], command: str) -> tuple[Terminal, Terminal]:
    """Let two workers share the tasks; return the worker that got the long task, then the other worker."""
    for worker in workers:
        worker.start(command)
    boss.run(f"printf '%s\\n' {' '.join([_LONG_TASK, *_QUICK_TASK])} | mqtool new-task -l{stage.queue('task_queue')}")
    wait_until(
        lambda: sum(worker.count("[x] Done") for worker in workers) == 1 + len(_QUICK_TASK),
        lambda: f"the workers to do {1 + len(_QUICK_TASK)} tasks; they did {[_tasks_of(worker) for worker in workers]}",
    )
    for worker in workers:
        worker.interrupt()
    one, two = workers
    return (one, two) if _LONG_TASK in _tasks_of(one) else (two, one)


def _killed_worker(stage: Stage, boss: Terminal, one: Terminal, two: Terminal) -> None:
    stage.say(
        "Now Ctrl-C kills worker 1 in the middle of a task, before the acknowledgement. With --dialect, it dies at "
        "once, like the tutorial's script. Without it, Ctrl-C lets a worker finish its task.",
        predictions.KILLED_WORKER,
    )
    queue, shown = stage.queue("task_queue"), "-F 'Received %b, redelivered %R'"
    one.start(f"mqtool worker{queue} --dialect python {shown}")
    boss.run(f"mqtool new-task{queue} slow...")
    one.wait_for("Received ", 1)
    one.interrupt(130)
    two.start(f"mqtool worker{queue} {shown}")
    two.wait_for("[x] Done", 1)
    two.interrupt()
    stage.expect(
        "the killed worker's task was not lost: it was redelivered to worker 2, which did it",
        (one.after("Received "), one.count("[x] Done"), two.after("Received ")),
        (["slow..., redelivered 0"], 0, ["slow..., redelivered 1"]),
    )


def _forgotten_acknowledgement(stage: Stage, boss: Terminal, one: Terminal, two: Terminal) -> None:
    stage.say(
        "The classic mistake: worker 1 does its tasks but never acknowledges them. The broker therefore does not know "
        "that they are done.",
        predictions.FORGOTTEN_ACKNOWLEDGEMENT,
    )
    shown = "-F 'Received %b, redelivered %R'"
    queue = stage.queue("task_queue")
    one.start(f"mqtool worker{queue} --prefetch 0 --forget-ack {shown}")
    boss.run(f"printf '%s\\n' a b c | mqtool new-task -l{queue}")
    one.wait_for("[x] Done", 3)
    one.interrupt()
    two.start(f"mqtool worker{queue} {shown}")
    two.wait_for("[x] Done", 3)
    two.interrupt()
    stage.expect(
        "nothing was acknowledged: all three tasks were redelivered to the next worker",
        (one.after("Received "), two.after("Received ")),
        ([f"{task}, redelivered 0" for task in "abc"], [f"{task}, redelivered 1" for task in "abc"]),
    )


def _restarted_broker(stage: Stage, boss: Terminal, worker: Terminal, reader: Terminal) -> None:
    stage.say(
        "What if the broker itself restarts? Tasks are persistent, and their queue is durable. Two notes go to a "
        "durable classic queue: one note is persistent, the other is not.",
        predictions.RESTARTED_BROKER,
    )
    notes = "mqtool send -q notes --queue-type classic --durable"
    boss.run("mqtool new-task 'a task'")
    boss.run(f"{notes} 'in pencil'")
    boss.run(f"{notes} --persistent 'in ink'")
    boss.run("mqtool broker fault restart")
    worker.start("mqtool worker")
    worker.wait_for("[x] Done", 1)
    worker.interrupt()
    reader.run("mqtool receive -q notes --idle-timeout 1s")
    stage.expect("the task has survived the restart", _tasks_of(worker), ["a task"])
    stage.expect("of the two notes, only the persistent one has survived", reader.after("[x] Received "), ["in ink"])


def _tasks_of(worker: Terminal) -> list[str]:
    return worker.after("[x] Received ")


WORK_QUEUES = Play(
    "Work queues",
    "Workers share tasks, and each task is done by one of them. Each dot in a task is a second of work.",
    _work_queues,
    queues=("task_queue",),
)


def _publish_subscribe(stage: Stage) -> None:
    emitter, disk, screen = stage.terminals("emitter", "disk", "screen")
    emit = f"mqtool emit-log fanout{stage.exchange('logs')}"
    receive = f"mqtool receive-log fanout{stage.exchange('logs')}"
    file = stage.file("logs.log")

    stage.say("This time, publish to an exchange. No queue is bound to it yet.", predictions.UNBOUND_EXCHANGE)
    emitter.run(f"{emit} 'info: nobody listens'")
    stage.say("Start two receivers, each with its own queue. One writes to a file, the other to the screen.")
    disk.start(f"{receive} --raw > {file.name}")
    screen.start(receive)
    stage.say(
        "A fanout exchange copies each message to every queue bound to it. The emitter does not know which queues "
        "these are.",
        predictions.FANOUT,
    )
    emitter.run(f"{emit} 'info: Hello World!'")
    emitter.run(f"{emit} 'warning: it is late'")
    stage.wait_for_lines(file, 2)
    screen.wait_for("[x]", 2)
    if not stage.place.apart:
        _bindings_of_logs(stage, emitter, 2)
        stage.say("Now stop the receivers, and look again: their queues were temporary.")
    disk.interrupt()
    screen.interrupt()
    disk.run(f"cat {file.name}")

    since = ["info: Hello World!", "warning: it is late"]
    stage.expect(
        "the file has the messages published after the receiver had started, and not the first one",
        lines_of(file),
        since,
    )
    stage.expect("the screen shows the same messages", screen.after("[x] "), since)
    if not stage.place.apart:
        _temporary_queues_are_gone(stage, emitter)


def _bindings_of_logs(stage: Stage, terminal: Terminal, count: int) -> None:
    stage.say(
        "Look at the broker: the exchange is bound to each receiver's queue. The broker chose the names of the queues."
    )
    terminal.run("mqtool list exchanges --where name=logs")
    bindings = terminal.run("mqtool list bindings source_name destination_name --where source_name=logs")
    stage.expect(
        f"exchange logs has {count} bindings, each to a queue of its own",
        (len(bindings), len(set(bindings))),
        (count, count),
    )


def _temporary_queues_are_gone(stage: Stage, terminal: Terminal) -> None:
    queues = terminal.run("mqtool list queues name")
    bindings = terminal.run("mqtool list bindings --where source_name=logs")
    exchanges = terminal.run("mqtool list exchanges name --where name=logs")
    stage.expect(
        "the queues and their bindings are gone, but the exchange is still there",
        (queues, bindings, exchanges),
        (["no queues in vhost '/'"], ["no such bindings in vhost '/'"], ["logs"]),
    )


PUBLISH_SUBSCRIBE = Play(
    "Publish/subscribe",
    "A fanout exchange gives every receiver a copy of each message.",
    _publish_subscribe,
    exchanges=("logs",),
)


def _routing(stage: Stage) -> None:
    emitter, disk, screen = stage.terminals("emitter", "disk", "screen")
    emit = f"mqtool emit-log direct{stage.exchange('direct_logs')}"
    receive = f"mqtool receive-log direct{stage.exchange('direct_logs')}"
    file = stage.file("errors.log")

    stage.say("Each receiver names the severities it wants, with a binding for each. The file gets errors only.")
    disk.start(f"{receive} error > {file.name}")
    screen.start(f"{receive} info warning error")
    stage.say(
        "A direct exchange routes a message to queues whose binding key equals its routing key, the severity.",
        predictions.DIRECT,
    )
    emitter.run(f"{emit} info 'All is well.'")
    emitter.run(f"{emit} debug 'Nobody has asked for this.'")
    emitter.run(f"{emit} warning 'It ticks.'")
    emitter.run(f"{emit} error 'Run. Run. Or it will explode.'")
    stage.wait_for_lines(file, 1)
    screen.wait_for("[x]", 3)

    stage.expect("the file contains only the error", lines_of(file), [" [x] error:Run. Run. Or it will explode."])
    stage.expect(
        "the screen shows the three severities it asked for",
        screen.after("[x] "),
        ["info:All is well.", "warning:It ticks.", "error:Run. Run. Or it will explode."],
    )
    _queue_with_a_name(stage, emitter, disk, screen)


def _queue_with_a_name(stage: Stage, emitter: Terminal, disk: Terminal, screen: Terminal) -> None:
    exchange = stage.exchange("direct_logs")
    receive = f"mqtool receive-log direct{exchange} error critical -q {stage.name('errors')} --declare"
    stage.say(
        "So far, each queue was deleted when its receiver ended. Now give the queue a name, and stop the receiver."
    )
    disk.interrupt()
    screen.interrupt()
    disk.run("cat errors.log")
    disk.start(receive)
    disk.interrupt()
    emitter.run(f"mqtool emit-log direct{exchange} critical 'Disk full.'")
    emitter.run(f"mqtool emit-log direct{exchange} info 'All is well.'")
    stage.say(
        "The critical message waits in the queue. No queue is bound with 'info' any more. Start the receiver again.",
        predictions.NAMED_QUEUE,
    )
    disk.start(receive)
    disk.wait_for("[x]", 1)
    disk.interrupt()
    stage.expect(
        "the named queue kept the messages that arrived in the meantime", disk.after("[x] "), ["critical:Disk full."]
    )


ROUTING = Play(
    "Routing",
    "A direct exchange lets receivers choose by severity. A receiver can have several bindings.",
    _routing,
    queues=("errors",),
    exchanges=("direct_logs",),
)


_CRITICAL = ("kern.critical", "A critical kernel error")
_MESSAGES = [("kern.info", "Booting"), ("cron.critical", "No time left"), ("anonymous.info", "Hello"), _CRITICAL]


def _topics(stage: Stage) -> None:
    emitter, everything, kernel, critical = stage.terminals("emitter", "all", "kernel", "critical")
    exchange = stage.exchange("topic_logs")
    # The last message reaches all receivers, and reaches each of them after its other messages.
    all_lines = [f" [x] {key}:{text}" for key, text in _MESSAGES]
    receivers = [
        (everything, "'#'", all_lines, "every message"),
        (kernel, "'kern.*'", [all_lines[0], all_lines[3]], "the kernel's messages"),
        (critical, "'kern.*' '*.critical'", [all_lines[0], all_lines[1], all_lines[3]], "each matching message once"),
    ]

    stage.say("Three receivers use patterns: * matches exactly one word of the routing key, # any number of words.")
    for terminal, patterns, _, _ in receivers:
        terminal.start(f"mqtool receive-log topic{exchange} {patterns} > {terminal.name}.log")
    stage.say("Send four messages. Each routing key has two words: a source and a severity.", predictions.TWO_BINDINGS)
    for key, text in _MESSAGES:
        emitter.run(f"mqtool emit-log topic{exchange} {key} {shlex.quote(text)}")
    for terminal, _, lines, _ in receivers:
        stage.wait_for_lines(stage.file(f"{terminal.name}.log"), len(lines))
    stage.say("Now stop the receivers, and look at their files.")
    for terminal, _, _, _ in receivers:
        terminal.interrupt()
        terminal.run(f"cat {terminal.name}.log")

    for terminal, patterns, lines, what in receivers:
        stage.expect(f"{patterns} got {what}", lines_of(stage.file(f"{terminal.name}.log")), lines)
    _any_number_of_words(stage, emitter, kernel, critical)


def _any_number_of_words(stage: Stage, emitter: Terminal, hashed: Terminal, starred: Terminal) -> None:
    """Use keys of one, two and three words to show that # matches any number of words, even none, and * exactly one."""
    emit, receive = (f"mqtool {command} topic{stage.exchange('topic_logs')}" for command in ("emit-log", "receive-log"))
    stage.say("A key may have any number of words.", predictions.WORDS)
    hashed.start(f"{receive} 'kern.#'")
    starred.start(f"{receive} 'kern.*.*'")
    keys = ["kern", "kern.disk", "kern.disk.full"]
    for key in keys:
        emitter.run(f"{emit} {key} x")
    hashed.wait_for("[x] ", len(keys))
    starred.wait_for("[x] ", 1)
    stage.expect(
        "'kern.#' got all three keys: # matches zero or more words", hashed.after("[x] "), [f"{key}:x" for key in keys]
    )
    stage.expect("'kern.*.*' got only the key of three words", starred.after("[x] "), [f"{keys[2]}:x"])
    _puzzles(stage, hashed, starred)


def _puzzles(stage: Stage, *running: Terminal) -> None:
    """End the commands that are still running, and answer the questions at the end of the official tutorial."""
    stage.say("The official tutorial ends with four puzzles. Here are the first three:", predictions.EMPTY_KEY)
    for terminal in running:
        terminal.interrupt()
    emitter, one, other = stage.terminals("emitter", "one", "other")
    _who_gets(stage, emitter, {one: ("*", ["word"]), other: ("#.*", ["..", "word"])}, ["", "..", "word"])
    stage.say("And the last one:", predictions.ONE_OR_MORE)
    one.interrupt()
    other.interrupt()
    _who_gets(
        stage, emitter, {one: ("a.*.#", ["a.b", "a.b.c"]), other: ("a.#", ["a", "a.b", "a.b.c"])}, ["a", "a.b", "a.b.c"]
    )
    one.interrupt()
    other.interrupt()


def _who_gets(
    stage: Stage, emitter: Terminal, receivers: dict[Terminal, tuple[str, list[str]]], keys: list[str]
) -> None:
    """Send a message with each key. Check that each terminal receives only the keys listed with its pattern."""
    exchange = stage.exchange("topic_logs")
    for terminal, (pattern, _) in receivers.items():
        terminal.start(f"mqtool receive-log topic{exchange} '{pattern}'")
    for key in keys:
        emitter.run(f"mqtool emit-log topic{exchange} {shlex.quote(key)} x")
    for terminal, (_, matched) in receivers.items():
        terminal.wait_for("[x] ", len(matched))
    for terminal, (pattern, matched) in receivers.items():
        shown = ", ".join(map(repr, matched))
        stage.expect(f"{pattern!r} got {shown} only", terminal.after("[x] "), [f"{key}:x" for key in matched])


TOPICS = Play(
    "Topics",
    "A topic exchange lets receivers choose by pattern: * matches one word of the key, and # any number of them.",
    _topics,
    exchanges=("topic_logs",),
)


def _headers(stage: Stage) -> None:
    emitter, both, either = stage.terminals("emitter", "all", "any")
    emit = f"mqtool emit-log headers{stage.exchange('headers_logs')}"
    receive = f"mqtool receive-log headers{stage.exchange('headers_logs')}"
    all_file, any_file = stage.file("all.log"), stage.file("any.log")

    stage.say(
        "Both receivers name the same two headers. One gets messages with both headers; the other gets messages with "
        "at least one of them."
    )
    both.start(f"{receive} --match all format=pdf type=report > {all_file.name}")
    either.start(f"{receive} --match any format=pdf type=report > {any_file.name}")
    stage.say(
        "A headers exchange ignores the routing key, and compares the headers of each message.", predictions.HEADERS
    )
    emitter.run(f"{emit} -H format=pdf -H type=log 'A log, printed'")
    emitter.run(f"{emit} -H format=zip -H type=report 'A report, packed'")
    emitter.run(f"{emit} -H format=zip -H type=log 'A log, packed'")
    emitter.run(f"{emit} -H format=pdf -H type=report 'A report, printed'")
    stage.wait_for_lines(all_file, 1)
    stage.wait_for_lines(any_file, 3)
    stage.say("Now stop the receivers, and look at their files.")
    both.interrupt()
    either.interrupt()
    both.run(f"cat {all_file.name}")
    either.run(f"cat {any_file.name}")

    stage.expect("--match all got only the message with both headers", lines_of(all_file), [" [x] A report, printed"])
    stage.expect(
        "--match any got the messages with at least one of the headers",
        lines_of(any_file),
        [" [x] A log, printed", " [x] A report, packed", " [x] A report, printed"],
    )


HEADERS = Play(
    "Headers",
    "A headers exchange lets receivers choose by several headers at once.",
    _headers,
    exchanges=("headers_logs",),
)


def _rpc(stage: Stage) -> None:
    client, server = stage.terminals("client", "server")
    ask = f"mqtool rpc-client{stage.queue('rpc_queue')}"

    stage.say("A client sends a request, but no server is running. The client must not wait forever.")
    client.run(f"{ask} 30", code=ExitCode.UNAVAILABLE)
    stage.expect("the client says that there is no server, and exits with 69", client.count("no RPC server"), 1)

    stage.say("Start a server. Each request names the queue for its reply.")
    server.start(f"mqtool rpc-server{stage.declared_queue('rpc_queue')}")
    client.run(f"{ask} 30", converses=True)
    stage.expect("fib(30) is 832040", client.after("[.] Got "), ["832040"])

    stage.say("Send three requests at once. The correlation ID of each reply shows which request it answers.")
    client.run(f"{ask} 6 7 8", converses=True)
    stage.expect("each of the three requests got its own answer", client.after("[.] Got "), ["8", "13", "21"])

    stage.say("An invalid request gets an error as its reply, and the server keeps running.")
    client.run(f"{ask} --text ten", code=ExitCode.BAD_DATA, converses=True)
    client.run(f"{ask} 10", converses=True)
    stage.expect("the invalid request got an error, and the server still answers", client.after("Got "), ["55"])

    server.interrupt()
    stage.expect(
        "the server received each request once",
        server.after("[.] "),
        ["fib(30)", "fib(6)", "fib(7)", "fib(8)", "fib(ten)", "fib(10)"],
    )


RPC = Play(
    "RPC",
    "A request goes over one queue, and its reply over another. A correlation ID shows that they belong together.",
    _rpc,
    queues=("rpc_queue",),
)


#: With batches of 5, even on one machine, waiting for each batch clearly takes longer than not waiting.
_CONFIRM_COUNT, _CONFIRM_BATCH = 10_000, 5
#: The ways of waiting for confirms, each with a queue of its own, and how the output describes each of them.
_CONFIRM_WAYS = {"individual": "individually", "batch": "in batch", "async": "and handled confirms asynchronously"}


def _publisher_confirms(stage: Stage) -> None:
    (publisher,) = stage.terminals("publisher")
    published = f"Published {_CONFIRM_COUNT:,} messages "
    lines: list[str] = []

    for way, text in (
        ("individual", f"Publish {_CONFIRM_COUNT:,} messages, and wait for each confirm before the next message."),
        ("batch", f"Publish as many to another queue, and wait only once per {_CONFIRM_BATCH} messages."),
        ("async", "Now publish without waiting, and handle confirms as they arrive."),
    ):
        stage.say(text)
        size = f" --batch-size {_CONFIRM_BATCH}" if way == "batch" else ""
        publisher.run(f"mqtool publisher-confirms {way} -c {_CONFIRM_COUNT}{size} -q {stage.name(way)} --durable")
        lines += publisher.after(published)
    # The command fails unless the broker confirms all of them.
    stage.expect(
        f"{_CONFIRM_COUNT:,} messages were published and confirmed in each of the three ways",
        [line.rpartition(" in ")[0] for line in lines],
        list(_CONFIRM_WAYS.values()),
    )
    each, batch, none = (line.rpartition(" in ")[2] for line in lines)
    stage.say(
        f"Each queue has {_CONFIRM_COUNT:,} messages. Waiting for each confirm took {each}, waiting once per "
        f"{_CONFIRM_BATCH} messages {batch}, and not waiting {none}."
    )


PUBLISHER_CONFIRMS = Play(
    "Publisher confirms",
    "The broker confirms each message. Waiting for every confirm in turn is the slow way.",
    _publisher_confirms,
    queues=tuple(_CONFIRM_WAYS),
)


#: The second message must overtake the first, however long a busy machine takes to start its command.
_DELAY_LONG, _DELAY_SHORT = 6, 1
#: The names of the wait queues, and of their exchanges. They are used if the broker does not have the plugin.
_DELAY_WAITING = (
    *(f"delay_exchange.exchange.delay.{seconds}s" for seconds in (_DELAY_LONG, _DELAY_SHORT)),
    "delayed_logs.exchange.delay.1s.classic",
)


def _delayed_messages(stage: Stage) -> None:
    sender, receiver = stage.terminals("sender", "receiver")
    _in_the_order_of_their_times(stage, sender, receiver)
    _any_command(stage, sender, receiver)


def _in_the_order_of_their_times(stage: Stage, sender: Terminal, receiver: Terminal) -> None:
    exchange = stage.exchange("delay_exchange")
    stage.say("Start a receiver. It gets messages when they are due.")
    receiver.start(f"mqtool receive-delayed{exchange}{stage.declared_queue('delay_queue')}")
    stage.say(
        f"'Wake up!' is due in {_DELAY_LONG} seconds; 'Tea is ready.' is sent after it, but is due in {_DELAY_SHORT}. "
        "Each send command ends immediately: the messages wait on the broker."
    )
    sender.run(f"mqtool send-delayed{exchange} --delay {_DELAY_LONG}s 'Wake up!'")
    sender.run(f"mqtool send-delayed{exchange} --delay {_DELAY_SHORT}s 'Tea is ready.'")
    receiver.wait_for("[x] Received", 2)
    receiver.interrupt()

    received = [line.partition(" ms late: ") for line in receiver.after("[x] Received, ")]
    stage.expect(
        "the message sent second arrived first", [body for _, _, body in received], ["Tea is ready.", "Wake up!"]
    )
    stage.expect("no message arrived early", [late for late, _, _ in received if late.startswith("-")], [])


def _any_command(stage: Stage, sender: Terminal, receiver: Terminal) -> None:
    logs = stage.name("delayed_logs")
    stage.say(
        "Other commands, such as emit-log, can delay messages, too. These log messages are routed by key as usual, but "
        "a second later."
    )
    receiver.start(f"mqtool receive-log topic -e {logs} 'kern.*'")
    sender.run(f"mqtool emit-log topic -e {logs} --delay 1s cron.info 'Nobody has asked for this.'")
    sender.run(f"mqtool emit-log topic -e {logs} --delay 1s kern.info 'Booted.'")
    receiver.wait_for("[x]", 1)
    receiver.interrupt()
    stage.expect(
        "a delayed log message is routed by its key once it is due", receiver.after("[x] "), ["kern.info:Booted."]
    )


DELAYED_MESSAGES = Play(
    "Delayed messages",
    "The broker holds a message back, and delivers it when its delay is over.",
    _delayed_messages,
    queues=("delay_queue", "delay_exchange.nowhere", *_DELAY_WAITING),
    exchanges=("delay_exchange", "delay_exchange.due", "delayed_logs", "delayed_logs.delayed", *_DELAY_WAITING),
)

"""AMQP 1.0 errors: their conditions, and their descriptions, in which values are in Erlang's notation."""

import uuid

import pytest

from mqtool.broker.embedded.amqp10.errors10 import LinkError, binary, condition_of, term
from mqtool.broker.embedded.model.amqp_errors import AmqpException, ChannelException, precondition_failed
from mqtool.codecs.amqp10_frames import Error
from mqtool.codecs.amqp10_values import Any10, Array, Char, Described, Milliseconds, Symbol, ULong
from mqtool.codecs.field_tables import Float32, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (Char("é"), "{char,233}"),
        (Symbol("a"), '{symbol,<<"a">>}'),
        ("a", '{utf8,<<"a">>}'),
        ("é", '{utf8,<<"é"/utf8>>}'),
        (b"a b~", '{binary,<<"a b~">>}'),
        (b"\x1fa", "{binary,<<31,97>>}"),
        (b"\x7f", "{binary,<<127>>}"),
        (uuid.UUID(int=5), f"{{uuid,<<{'0,' * 15}5>>}}"),
        (Described(Symbol("d"), "v"), '{described,{symbol,<<"d">>},{utf8,<<"v">>}}'),
        ({"a": 1, "b": None}, '{map,[{{utf8,<<"a">>},{long,1}},{{utf8,<<"b">>},null}]}'),
        (Array([Symbol("a"), Symbol("b")]), '{array,symbol,[{symbol,<<"a">>},{symbol,<<"b">>}]}'),
        (Array([]), "{array,null,[]}"),
        (Array([Described("d", "v")]), '{array,described,[{described,{utf8,<<"d">>},{utf8,<<"v">>}}]}'),
        ([UInt8(1), "x"], '{list,[{ubyte,1},{utf8,<<"x">>}]}'),
        (UInt16(1), "{ushort,1}"),
        (UInt32(1), "{uint,1}"),
        (ULong(1), "{ulong,1}"),
        (Int8(-1), "{byte,-1}"),
        (Int16(-1), "{short,-1}"),
        (Int32(-1), "{int,-1}"),
        (Int64(-1), "{long,-1}"),
        (Float32(1.5), "{float,1.5}"),
        (2.5, "{double,2.5}"),
        (Milliseconds(5), "{timestamp,5}"),
    ],
)
def test_values_in_error_descriptions_are_in_erlangs_notation(value: Any10, text: str) -> None:
    """If the description of an AMQP 1.0 error contains a value that the client has sent, the value is in Erlang's
    notation, as in RabbitMQ.
    """
    assert term(value) == text


def test_text_in_error_descriptions_is_in_quotes() -> None:
    """In the description of an AMQP 1.0 error, the broker writes printable text as `<<"text">>`, and any other bytes as
    their numbers, such as `<<0,255>>`.
    """
    assert [binary(each) for each in ("q", b"q", b"", b"\x00\xff")] == ['<<"q">>', '<<"q">>', '<<"">>', "<<0,255>>"]


@pytest.mark.parametrize(
    ("error", "condition", "text"),
    [
        (ChannelException(403, "no"), "amqp:unauthorized-access", "no"),
        (ChannelException(404, "no queue"), "amqp:not-found", "no queue"),
        (ChannelException(405, "locked"), "amqp:resource-locked", "locked"),
        (precondition_failed("a - b"), "amqp:precondition-failed", "a - b"),
        (AmqpException(540, "not yet"), "amqp:not-implemented", "not yet"),
        (AmqpException(506, "full"), "amqp:resource-limit-exceeded", "full"),
        (AmqpException(320, "forced"), "amqp:internal-error", "forced"),
        (AmqpException(541, "broken"), "amqp:internal-error", "broken"),
        (AmqpException(541), "amqp:internal-error", "INTERNAL_ERROR"),
    ],
)
def test_an_error_of_the_broker_has_an_amqp_1_0_condition(error: AmqpException, condition: str, text: str) -> None:
    """An error with an AMQP 0-9-1 reply code becomes an AMQP 1.0 error with the corresponding condition and the same
    text. If the error has no text, the AMQP 1.0 error contains the name of the reply code instead.
    """
    assert condition_of(error) == (condition, text)


def test_the_error_that_detaches_a_link_can_have_additional_information() -> None:
    """To detach an AMQP 1.0 link because of an error, the broker raises LinkError. This exception contains the error
    for the detach frame: a condition, and optionally a description and additional information.
    """
    tag = {Symbol("delivery-tag"): b"1"}
    assert LinkError("amqp:not-found", "no queue", tag).error == Error("amqp:not-found", "no queue", tag)
    assert LinkError("amqp:not-found").error == Error("amqp:not-found", None, None)

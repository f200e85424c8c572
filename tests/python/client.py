"""A millrace client written from docs/PROTOCOL.md alone, on somebody else's WebSocket library.

Usage: client.py ws://HOST:PORT/ TOKEN_OF_ALICE TOKEN_OF_BOB

Two users log in over WebSocket. A direct message, a group message and a room message go from one to the other.
Prints one line per step and ends with "all good"; any difference from the protocol is an exception.
"""

import sys

from websockets.sync.client import connect

REQUEST, RESPONSE, NOTIFY, PING, PONG = 1, 2, 3, 4, 5


# ---- protobuf, as much as is needed ----

def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(tag, value):
    return varint(tag << 3) + varint(value)


def text(tag, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(tag << 3 | 2) + varint(len(value)) + value


def parse(body):
    """Fields of a message: tag -> value (int or bytes); the last one of a repeated tag, a list under -tag."""
    fields, at = {}, 0

    def read():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = body[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(body):
        key = read()
        tag, wire = key >> 3, key & 7
        if wire == 0:
            value = read()
        elif wire == 2:
            size = read()
            value = body[at:at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire}")
        fields[tag] = value
        fields.setdefault(-tag, []).append(value)
    return fields


# ---- the protocol ----

def frame(kind, body=b""):
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def frames(message):
    at = 0
    while at < len(message):
        size = int.from_bytes(message[at + 1:at + 4], "big")
        yield message[at], message[at + 4:at + 4 + size]
        at += 4 + size


class Client:
    def __init__(self, url, token, device):
        self.socket = connect(url)
        self.next_id = 1
        self.notified = []
        answer = self.ask(2, text(1, token) + text(2, device) + text(3, "python"))
        assert 3 in answer, f"no LoginAck: {answer}"
        self.login = parse(answer[3])
        assert self.login[1] > 0 and self.login[3] > 0, "a session and a heartbeat interval"

    def receive(self):
        for kind, body in frames(self.socket.recv(timeout=10)):
            if kind == NOTIFY:
                self.notified.append(parse(body))
            else:
                yield kind, body

    def ask(self, op, body):
        """Sends Request{id, op} and returns the fields of the Response with that id."""
        ident, self.next_id = self.next_id, self.next_id + 1
        self.socket.send(frame(REQUEST, number(1, ident) + text(op, body)))
        while True:
            for kind, answer in self.receive():
                if kind == RESPONSE and parse(answer)[1] == ident:
                    return parse(answer)

    def ping(self):
        self.socket.send(frame(PING))
        while not any(kind == PONG for kind, _ in self.receive()):
            pass

    def deliver(self):
        """The next Deliver of a message; what the server says of groups (action 5) is passed over."""
        while True:
            for at, event in enumerate(self.notified):
                if 1 in event and parse(event[1]).get(10) != 5:
                    del self.notified[at]
                    return parse(event[1])
            for _ in self.receive():
                pass


def send(client, conversation, client_seq, payload):
    answer = client.ask(3, text(1, conversation) + number(2, client_seq) + number(3, 77) + text(4, payload))
    assert 4 in answer, f"no SendAck: {answer}"
    return parse(answer[4])


def check(received, ack, conversation, payload):
    assert received[1].decode() == conversation, received
    assert received[2] == ack[1], "the seq of the ack"
    assert received[3] == ack[2], "the message id of the ack"
    assert received[4] == b"alice" and received[5] == b"laptop", received
    assert received[8] == payload.encode(), received


def main():
    url, alice_token, bob_token = sys.argv[1:]
    alice = Client(url, alice_token, "laptop")
    bob = Client(url, bob_token, "laptop")
    print("logged in:", alice.login[2].decode(), bob.login[2].decode())
    alice.ping()
    print("heartbeat answered")

    ack = send(alice, "d:alice:bob", 1, "hello bob")
    check(bob.deliver(), ack, "d:alice:bob", "hello bob")
    repeat = send(alice, "d:alice:bob", 1, "hello bob")
    assert repeat[1] == ack[1] and repeat[2] == ack[2], "a repeat gets the first answer"
    print("direct message delivered, its repeat answered as the first time")

    assert 5 in alice.ask(4, text(1, "python-team"))
    assert 5 in bob.ask(5, text(1, "python-team"))
    ack = send(alice, "g:python-team", 1, "hello team")
    check(bob.deliver(), ack, "g:python-team", "hello team")
    members = parse(alice.ask(7, text(1, "python-team") + number(3, 10))[7])
    assert members[-1] == [b"alice", b"bob"], members
    print("group message delivered")

    for client in (alice, bob):
        assert 5 in client.ask(8, text(1, "python-lobby"))
    big = "x" * 20000
    ack = send(alice, "r:python-lobby", 1, big)
    check(bob.deliver(), ack, "r:python-lobby", big)
    print("room message of 20,000 bytes delivered")

    refused = parse(alice.ask(3, text(1, "g:nobody-made-this") + number(2, 1) + number(3, 77))[2])
    assert refused[1] == 4015, refused
    assert 8 in alice.ask(10, b"")
    print("all good")


if __name__ == "__main__":
    main()

//! MQTT 3.1.1 with QoS 0 or 1, as much of it as a fan-out needs. No keep-alive is asked for, so no pings come or go.

use super::carry::Carry;
use super::{Codec, CodecError, Role, TOPIC, Told};

/// What a delivery promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Nothing.
    AtMostOnce = 0,
    /// It is acknowledged, and sent again until then.
    AtLeastOnce = 1,
}

/// One connection to a broker.
#[derive(Debug)]
pub struct Mqtt {
    role: Role,
    qos: Qos,
    /// Of the packet published last.
    packet_id: u16,
    carry: Carry,
}

impl Mqtt {
    /// Not connected yet.
    pub fn new(role: Role, qos: Qos) -> Self {
        Mqtt { role, qos, packet_id: 0, carry: Carry::default() }
    }
}

const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBACK: u8 = 9;
const PINGRESP: u8 = 13;

fn nonsense(what: impl ToString) -> CodecError {
    CodecError::Nonsense("MQTT", what.to_string())
}

/// A packet: its first byte, its body, and its bytes in all.
type Packet<'a> = (u8, &'a [u8], usize);

/// The packet that `rest` begins with.
fn packet(rest: &[u8]) -> Result<Option<Packet<'_>>, CodecError> {
    let Some((&first, after)) = rest.split_first() else { return Ok(None) };
    let mut length = 0usize;
    for (nth, &byte) in after.iter().enumerate() {
        if nth == 4 {
            return Err(nonsense("a length of more than four bytes"));
        }
        length |= usize::from(byte & 0x7f) << (7 * nth);
        if byte & 0x80 == 0 {
            let start = 2 + nth;
            return Ok(rest.get(start..start + length).map(|body| (first, body, start + length)));
        }
    }
    Ok(None)
}

fn write(first: u8, body: &[&[u8]], out: &mut Vec<u8>) {
    out.push(first);
    let mut left: usize = body.iter().map(|part| part.len()).sum();
    loop {
        let low = (left & 0x7f) as u8;
        left >>= 7;
        out.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    body.iter().for_each(|part| out.extend_from_slice(part));
}

fn topic_bytes() -> [u8; 2] {
    (TOPIC.len() as u16).to_be_bytes()
}

impl Codec for Mqtt {
    fn hello(&mut self, out: &mut Vec<u8>) -> bool {
        // Level 4, a clean session, no keep-alive, and a name that the broker makes up.
        write(0x10, &[b"\0\x04MQTT\x04\x02\0\0", b"\0\0"], out);
        false
    }

    fn hear(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError> {
        let (role, qos) = (self.role, self.qos);
        self.carry.feed(bytes, |rest| {
            let Some((first, body, used)) = packet(rest)? else { return Ok(None) };
            match first >> 4 {
                CONNACK => match (body, role) {
                    ([_, 0], Role::Subscriber) => {
                        write(0x82, &[&[0, 1], &topic_bytes(), TOPIC.as_bytes(), &[qos as u8]], out);
                    }
                    ([_, 0], Role::Publisher) => told(Told::Ready),
                    _ => return Err(CodecError::Refused(format!("CONNACK {body:?}"))),
                },
                SUBACK => match body {
                    [_, _, granted] if *granted == qos as u8 => told(Told::Ready),
                    _ => return Err(CodecError::Refused(format!("SUBACK {body:?}"))),
                },
                PUBLISH => {
                    let short = || nonsense("a PUBLISH that is too short");
                    let topic_bytes = body.get(..2).ok_or_else(short)?;
                    let mut at = 2 + usize::from(u16::from_be_bytes([topic_bytes[0], topic_bytes[1]]));
                    if first & 0b110 != 0 {
                        let id = body.get(at..at + 2).ok_or_else(short)?;
                        write(PUBACK << 4, &[id], out);
                        at += 2;
                    }
                    told(Told::Message(body.get(at..).ok_or_else(short)?));
                }
                PUBACK | PINGRESP => {}
                kind => return Err(nonsense(format!("a packet of kind {kind}"))),
            }
            Ok(Some(used))
        })
    }

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let first = (PUBLISH << 4) | (self.qos as u8) << 1;
        match self.qos {
            Qos::AtMostOnce => write(first, &[&topic_bytes(), TOPIC.as_bytes(), payload], out),
            Qos::AtLeastOnce => {
                self.packet_id = self.packet_id.wrapping_add(1).max(1);
                let id = self.packet_id.to_be_bytes();
                write(first, &[&topic_bytes(), TOPIC.as_bytes(), &id, payload], out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Owned, check, refuses};
    use super::*;

    #[test]
    fn subscribes_and_hears_at_both_levels() {
        let subscribe = |qos| [&b"\x82\x08\0\x01\0\x03fan"[..], &[qos]].concat();
        let server = b"\x20\x02\0\0\x90\x03\0\x01\0\x30\x07\0\x03fanhi\x30\x05\0\x03fan";
        let told = [Owned::Ready, Owned::Message(b"hi".to_vec()), Owned::Message(Vec::new())];
        let make = |qos| move || Box::new(Mqtt::new(Role::Subscriber, qos)) as Box<dyn Codec>;
        check(make(Qos::AtMostOnce), server, &told, &subscribe(0));

        let server = b"\x20\x02\0\0\x90\x03\0\x01\x01\x32\x09\0\x03fan\x12\x34hi\x3a\x07\0\x03fan\x12\x35";
        let answers = [&subscribe(1)[..], b"\x40\x02\x12\x34\x40\x02\x12\x35"].concat();
        check(make(Qos::AtLeastOnce), server, &told, &answers);
    }

    #[test]
    fn publishes_with_lengths_of_one_and_two_bytes() {
        let mut out = Vec::new();
        let mut publisher = Mqtt::new(Role::Publisher, Qos::AtLeastOnce);
        publisher.publish(b"hi", &mut out);
        assert_eq!(out, b"\x32\x09\0\x03fan\0\x01hi");
        out.clear();
        Mqtt::new(Role::Publisher, Qos::AtMostOnce).publish(&[7; 200], &mut out);
        assert_eq!(&out[..8], b"\x30\xcd\x01\0\x03fan");
        check(
            || Box::new(Mqtt::new(Role::Publisher, Qos::AtLeastOnce)),
            b"\x20\x02\0\0\x40\x02\0\x01\xd0\0",
            &[Owned::Ready],
            b"",
        );
        let long = [&b"\x30\xcd\x01\0\x03fan"[..], &[7; 200]].concat();
        let told = [Owned::Message(vec![7; 200])];
        check(|| Box::new(Mqtt::new(Role::Subscriber, Qos::AtMostOnce)), &long, &told, b"");
    }

    #[test]
    fn takes_no_for_an_answer() {
        for no in [
            &b"\x20\x02\0\x05"[..],
            b"\x90\x03\0\x01\x80",
            b"\x30\x01\0",
            b"\x30\xff\xff\xff\xff\xff\x01",
            b"\xf0\0",
        ] {
            refuses(|| Box::new(Mqtt::new(Role::Subscriber, Qos::AtMostOnce)), no);
        }
    }
}

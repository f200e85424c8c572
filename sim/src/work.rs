//! What users do: say something here and there, join, leave, hang up. All of it is allowed; none of it is a fault.

use millrace_protocol::conversation;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{GroupCreate, GroupJoin, GroupLeave, RoomJoin, RoomLeave};

use crate::device::Device;
use crate::outside::Outside;
use crate::plan::Plan;
use crate::random::Random;

/// A user's name.
pub fn user(index: usize) -> String {
    format!("user{index}")
}

/// The groups that exist from the beginning on: asked for until they are there, as their founder may crash.
pub fn create_groups(out: &mut Outside, plan: &Plan, founder: &mut Device) {
    for group in 0..plan.groups {
        if out.ledger.membership.of(&format!("g:group{group}")).is_some() {
            continue;
        }
        // The last user joins by itself, if at all.
        let members = (0..plan.users.max(2) - 1).map(user).filter(|name| *name != founder.user).collect();
        let op = GroupCreate { group: format!("group{group}"), members, ..GroupCreate::default() };
        founder.call(out, Op::GroupCreate(op));
    }
}

/// One thing that a device does of its own will.
pub fn do_something(out: &mut Outside, plan: &Plan, random: &mut Random, device: &mut Device) {
    match random.below(100) {
        0..42 => {
            let peer = user(random.index(plan.users));
            let conversation = conversation::direct(&device.user, &peer);
            burst(out, random, device, &conversation);
        }
        42..78 => {
            let groups: Vec<&String> = device.groups.iter().collect();
            if !groups.is_empty() {
                let group = groups[random.index(groups.len())].clone();
                burst(out, random, device, &group);
            }
        }
        78..84 => {
            let rooms: Vec<String> = device.rooms.iter().cloned().collect();
            if !rooms.is_empty() {
                let room = rooms[random.index(rooms.len())].clone();
                burst(out, random, device, &room);
            }
        }
        84..88 => {
            let group = format!("group{}", random.index(plan.groups));
            device.call(out, Op::GroupJoin(GroupJoin { group }));
        }
        88..90 => {
            let group = format!("group{}", random.index(plan.groups));
            let conversation = format!("g:{group}");
            device.call(out, Op::GroupLeave(GroupLeave { group }));
            // Said before the answer is there: it comes too late.
            if random.chance(500) {
                burst(out, random, device, &conversation);
            }
        }
        90..95 => {
            let room = format!("room{}", random.index(plan.rooms));
            device.call(out, Op::RoomJoin(RoomJoin { room }));
        }
        95..97 => {
            let room = format!("room{}", random.index(plan.rooms));
            device.call(out, Op::RoomLeave(RoomLeave { room }));
        }
        _ => device.change_network(out, false),
    }
}

/// A device leaves a group that it is in, or joins one.
pub fn come_and_go(out: &mut Outside, plan: &Plan, random: &mut Random, device: &mut Device) {
    let group = format!("group{}", random.index(plan.groups));
    let op = match device.groups.contains(&format!("g:{group}")) {
        true => Op::GroupLeave(GroupLeave { group }),
        false => Op::GroupJoin(GroupJoin { group }),
    };
    device.call(out, op);
}

/// A message, or some.
fn burst(out: &mut Outside, random: &mut Random, device: &mut Device, conversation: &str) {
    let count = if random.chance(800) { 1 } else { random.between(2, 9) };
    for _ in 0..count {
        let filler = if random.chance(950) { random.index(24) } else { random.index(6_000) };
        device.say(out, conversation, filler);
    }
}

/// At the end: one message from every device to everyone whom it can reach.
pub fn probe(out: &mut Outside, plan: &Plan, device: &mut Device) {
    for peer in 0..plan.users {
        let conversation = conversation::direct(&device.user, &user(peer));
        device.say(out, &conversation, 0);
    }
    for group in device.groups.clone() {
        device.say(out, &group, 0);
    }
}

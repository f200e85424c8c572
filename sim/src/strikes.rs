//! Carries out the faults of a schedule.

use crate::agenda::{Due, Who};
use crate::clock::SECOND;
use crate::dispatcher;
use crate::network::{ConnId, End};
use crate::outside::Outside;
use crate::schedule::Kind;
use crate::store::Trouble;
use crate::thread::Burn;
use crate::world::{GIVE_UP_US, World};

impl World {
    fn who(&self, process: usize) -> Who {
        match process.checked_sub(self.gateways.len()) {
            None => Who::Gateway(process),
            Some(node) => Who::Node(node % self.nodes.len()),
        }
    }

    /// The fault of that number happens.
    pub(crate) fn fault(&mut self, index: usize) {
        let kind = self.faults[index].kind;
        self.out.trace.number(index as u64 | 0xfa << 32);
        self.out.trace.say(self.out.now_us, |text| *text += &format!("**** fault {index}: {kind:?}"));
        let now_us = self.out.now_us;
        match kind {
            Kind::Crash { process, steps, down_us, silently } => {
                self.light(process, steps, Burn::Crash { down_us, silently });
            }
            Kind::Stop { process, thread, steps, for_us } => {
                self.light(process, steps, Burn::Stop { thread, for_us });
            }
            Kind::Jump { process, by_ms } => match self.who(process) {
                Who::Gateway(index) => self.gateways[index].clock.jump(by_ms),
                Who::Node(index) => {
                    self.nodes[index].clock.jump(by_ms);
                    // The store is on the first one's machine. Where it is several, they keep time.
                    if index == 0 && !self.out.store.keep_copies {
                        self.out.store.clock.jump(by_ms);
                    }
                }
            },
            Kind::Astray { node, by_ms } => self.nodes[node].clock.jump(by_ms),
            Kind::Leave { process } => match self.who(process) {
                Who::Gateway(index) if self.gateways[index].alive => {
                    self.gateways[index].drain(&mut self.out, 2 * SECOND);
                }
                Who::Node(index) if self.nodes[index].alive => {
                    let control = self.nodes[index].threads.control();
                    self.nodes[index].threads.push(&mut self.out, control, dispatcher::Input::Leave);
                }
                _ => {}
            },
            Kind::Drop { link, which } => {
                if let Some(id) = self.connection(link, which) {
                    let Outside { network, agenda, .. } = &mut self.out;
                    network.drop_now(agenda, now_us, id, GIVE_UP_US);
                }
            }
            Kind::Cut { link, which, side, for_us } => {
                if let Some(id) = self.connection(link, which) {
                    let Outside { network, agenda, .. } = &mut self.out;
                    network.cut(agenda, now_us, id, side, for_us);
                }
            }
            Kind::Stall { link, which, side, for_us } => {
                if let Some(id) = self.connection(link, which) {
                    self.out.network.stall(now_us, id, side, for_us);
                }
            }
            Kind::Double { device } => {
                let index = device % self.devices.len();
                self.devices[index].change_network(&mut self.out, true);
            }
            Kind::CrashClient { device, down_us, silently } => {
                let index = device % self.devices.len();
                self.devices[index].crash(&mut self.out, down_us, silently);
            }
            Kind::BusyClient { device, for_us } => {
                let index = device % self.devices.len();
                self.devices[index].be_busy(&mut self.out, for_us);
            }
            Kind::Strand { node, for_us } => {
                let index = node % self.nodes.len();
                let Outside { network, agenda, .. } = &mut self.out;
                for (id, side) in
                    network.sides_of(|end| matches!(end, End::NodeLink(node, _) if node == index))
                {
                    network.cut(agenda, now_us, id, side, GIVE_UP_US);
                }
                self.out.after(for_us, Due::End(Who::Node(index), self.nodes[index].life));
            }
            Kind::Trouble { process, refused, unknown, slow_us, for_us } => {
                let of = process.map(|process| self.who(process));
                let until_us = now_us + for_us;
                self.out.store.trouble(Trouble { until_us, refused, unknown, of, slow_us });
            }
            Kind::StoreStops { for_us } => self.out.store.stall(now_us + for_us),
            Kind::FallBack { by_us } => self.out.store.fall_back(&mut self.out.ledger, now_us, by_us),
            Kind::ComeBack => self.out.store.come_back(&mut self.out.ledger, now_us),
            Kind::Empty => self.out.store.empty(&mut self.out.ledger),
            Kind::LateWords { process, for_us } => {
                let who = self.who(process);
                let network = &mut self.out.network;
                let says =
                    |end: End| matches!((end, who), (End::NodeLink(node, _), Who::Node(it)) if node == it);
                for (id, side) in network.sides_of(says) {
                    network.stall(now_us, id, side, for_us);
                }
            }
            Kind::DeafClient { device, for_us } => {
                let index = device % self.devices.len();
                self.devices[index].be_deaf(now_us + for_us);
            }
            Kind::CopyClient { device } => {
                let index = device % self.devices.len();
                self.devices[index].be_copied(&mut self.out);
            }
        }
    }

    fn light(&mut self, process: usize, steps: u32, burn: Burn) {
        match self.who(process) {
            Who::Gateway(index) => self.gateways[index].fuse.light(steps, burn),
            Who::Node(index) => self.nodes[index].fuse.light(steps, burn),
        }
    }

    fn connection(&self, link: bool, which: usize) -> Option<ConnId> {
        let all = self.out.network.of_kind(link);
        (!all.is_empty()).then(|| all[which % all.len()])
    }
}

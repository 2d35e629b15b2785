//! Members that lie: what they send beside what their machine wants.

use meshwork_proto::membership::{BUCKETS, Chance, Key, Message};

use super::ledger::{Fact, Make};
use super::link::micros;
use super::sim::{Call, Event, Sim};
use super::spec::Lie;

impl Sim<'_> {
    pub(super) fn on_lie(&mut self, n: u32, lie: Lie) {
        let Some(adversary) = self.spec.adversary.clone() else {
            return;
        };
        if self.nodes[n as usize].runs() {
            for _ in 0..adversary.size {
                self.lie(n, lie);
            }
        }
        let next = self.queue.now() + micros(adversary.every).max(1);
        if next < self.quiet_from {
            self.queue.push(next, Event::Lie { node: n, lie });
        }
    }

    fn lie(&mut self, n: u32, lie: Lie) {
        let now = self.queue.now();
        let victim = self.victim(n);
        let node = &self.nodes[n as usize];
        let clock = node.clock(now);
        let latest = u64::from(self.book.latest(victim));
        let fact = match lie {
            Lie::Accuse => {
                let version = u64::from(node.ledger.version_of(victim));
                Some(node.ledger.accusation(n, victim, version, clock))
            }
            Lie::AccuseAhead => {
                let ahead = latest + 1 + self.fate.next_u64() % 1000;
                Some(node.ledger.accusation(n, victim, ahead, clock))
            }
            Lie::Replay => {
                let old = u64::from(self.book.oldest(victim).unwrap_or(1));
                node.ledger.lie(victim, old, Make::Genuine, clock)
            }
            Lie::Forge => node.ledger.lie(victim, latest + 1, Make::Forged, clock),
            Lie::Oversize => node.ledger.lie(victim, latest, Make::Oversized, clock),
            Lie::Babble => {
                self.announce(n, 0, true);
                self.feed_all();
                None
            }
            Lie::Flood => {
                self.flood(n, victim);
                None
            }
            // These only change what is answered.
            Lie::Stall | Lie::Vouch => None,
        };
        if let Some(fact) = fact {
            self.tell_all(n, &fact);
        }
    }

    fn victim(&mut self, n: u32) -> u32 {
        let victim = self.fate.below(self.nodes.len() - 1);
        let victim = u32::try_from(victim).unwrap_or(0);
        if victim >= n { victim + 1 } else { victim }
    }

    fn tell_all(&mut self, n: u32, fact: &Fact) {
        for (_, end) in self.nodes[n as usize].links.clone() {
            let call = Call {
                messages: Vec::new(),
                facts: vec![fact.clone()],
            };
            self.send_call(end, call);
        }
    }

    /// One message of a random kind to every neighbour.
    fn flood(&mut self, n: u32, victim: u32) {
        let seq = u32::try_from(self.fate.next_u64() >> 32).unwrap_or(0);
        let key = Key::Node(victim);
        let message = match self.fate.below(9) {
            0 => Message::Ping {
                seq,
                version_of_you: u64::from(seq),
            },
            1 => Message::PingRequest {
                seq,
                target: victim,
            },
            2 => Message::IndirectAck {
                seq,
                target: victim,
                alive: false,
            },
            3 => Message::Neighbor { urgent: true },
            4 => Message::Summary {
                hash: u64::from(seq),
                count: seq,
            },
            5 => Message::Buckets {
                hashes: vec![u64::from(seq); BUCKETS as usize],
            },
            6 => Message::Keys {
                bucket: u8::try_from(seq % 80).unwrap_or(0),
                keys: vec![(key, u64::from(seq)); 40],
                whole: true,
            },
            7 => Message::Want {
                keys: vec![key; 40],
            },
            _ => Message::Ack { seq },
        };
        for (_, end) in self.nodes[n as usize].links.clone() {
            if matches!(message.lane(), meshwork_proto::membership::Lane::Datagram) {
                self.send_datagram(end, message.clone());
            } else {
                let messages = vec![message.clone()];
                self.send_call(
                    end,
                    Call {
                        messages,
                        facts: Vec::new(),
                    },
                );
            }
        }
    }
}

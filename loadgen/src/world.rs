//! Who talks where: users, one room of everybody, groups of several sizes, and direct pairs, all by number.
//!
//! Everything is computed from a client's or a conversation's number, so that a million clients need no tables.
//! Members of a group are spread over the clients, as they are in life: client `i` is in group `i % groups` of each
//! size. The rule: members are fixed for a run, so what a message must reach is known before it is sent.

use millrace_protocol::conversation;

use crate::limits::PAIRS_MAX;

/// What a conversation is, and so how it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everybody.
    Room,
    /// Durable members.
    Group,
    /// Two users.
    Direct,
}

#[derive(Clone, Debug)]
struct Size {
    members: u32,
    groups: u32,
    /// Conversation number of its first group.
    first: u32,
}

/// The users and conversations of a run.
#[derive(Debug)]
pub struct World {
    run: u32,
    clients: u32,
    room: bool,
    sizes: Vec<Size>,
    pairs: u32,
    first_pair: u32,
    /// Ids of all conversations, by number.
    names: Vec<String>,
}

/// Groups of one size, for schedules and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// What they are.
    pub kind: Kind,
    /// Members of each.
    pub members: u32,
    /// Number of the first conversation.
    pub first: u32,
    /// How many conversations.
    pub count: u32,
}

impl World {
    /// `clients` users, a room of all if `room`, as many whole groups of each size as fit, and at most `pairs` pairs.
    /// Sizes below 2 or above `clients` are left out.
    pub fn new(run: u32, clients: u32, room: bool, group_sizes: &[u32], pairs: u32) -> Self {
        let mut world =
            World { run, clients, room, sizes: Vec::new(), pairs: 0, first_pair: 0, names: Vec::new() };
        if room {
            world.names.push(format!("r:{run:08x}"));
        }
        let mut sizes: Vec<u32> = group_sizes.iter().copied().filter(|s| (2..=clients).contains(s)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        for members in sizes {
            let groups = clients / members;
            world.sizes.push(Size { members, groups, first: world.names.len() as u32 });
            world.names.extend((0..groups).map(|g| format!("g:{run:08x}-{members}-{g}")));
        }
        world.first_pair = world.names.len() as u32;
        world.pairs = pairs.min(clients / 2).min(PAIRS_MAX);
        for pair in 0..world.pairs {
            let (a, b) = world.pair(pair);
            let id = conversation::direct(&world.user(a), &world.user(b));
            world.names.push(id);
        }
        world
    }

    /// Tells this run from others on the same gateway.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// Users.
    pub fn clients(&self) -> u32 {
        self.clients
    }

    /// The name of a user.
    pub fn user(&self, client: u32) -> String {
        format!("u{:08x}-{client}", self.run)
    }

    /// The id of a conversation.
    pub fn name(&self, conversation: u32) -> Option<&str> {
        self.names.get(conversation as usize).map(String::as_str)
    }

    /// The part after "g:" or "r:".
    pub fn short_name(&self, conversation: u32) -> &str {
        self.name(conversation).and_then(|name| name.split_once(':')).map_or("", |(_, rest)| rest)
    }

    /// All kinds of conversations that exist, the room first and pairs last.
    pub fn classes(&self) -> Vec<Class> {
        let mut classes = Vec::new();
        if self.room {
            classes.push(Class { kind: Kind::Room, members: self.clients, first: 0, count: 1 });
        }
        for size in &self.sizes {
            classes.push(Class {
                kind: Kind::Group,
                members: size.members,
                first: size.first,
                count: size.groups,
            });
        }
        if self.pairs > 0 {
            classes.push(Class { kind: Kind::Direct, members: 2, first: self.first_pair, count: self.pairs });
        }
        classes
    }

    fn size_of(&self, conversation: u32) -> Option<&Size> {
        self.sizes.iter().find(|s| (s.first..s.first + s.groups).contains(&conversation))
    }

    /// The two of a pair: neighbours by half the clients, so that they sit on different ends of every table.
    fn pair(&self, pair: u32) -> (u32, u32) {
        (pair, pair + self.clients / 2)
    }

    /// What a conversation is.
    pub fn kind(&self, conversation: u32) -> Kind {
        if self.room && conversation == 0 {
            Kind::Room
        } else if conversation < self.first_pair {
            Kind::Group
        } else {
            Kind::Direct
        }
    }

    /// Members of a conversation, the sender included.
    pub fn members(&self, conversation: u32) -> u32 {
        match self.kind(conversation) {
            Kind::Room => self.clients,
            Kind::Group => self.size_of(conversation).map_or(0, |s| s.members),
            Kind::Direct => 2,
        }
    }

    /// The `nth` member (modulo their number).
    pub fn member(&self, conversation: u32, nth: u32) -> u32 {
        match self.kind(conversation) {
            Kind::Room => nth % self.clients,
            Kind::Group => {
                let size = self.size_of(conversation).expect("a group has a size");
                (conversation - size.first) + (nth % size.members) * size.groups
            }
            Kind::Direct => {
                let (a, b) = self.pair(conversation - self.first_pair);
                if nth.is_multiple_of(2) { a } else { b }
            }
        }
    }

    /// Whether this client gets what is said there.
    pub fn is_member(&self, conversation: u32, client: u32) -> bool {
        if conversation as usize >= self.names.len() || client >= self.clients {
            return false;
        }
        match self.kind(conversation) {
            Kind::Room => true,
            Kind::Group => self.size_of(conversation).is_some_and(|size| {
                client % size.groups == conversation - size.first && client / size.groups < size.members
            }),
            Kind::Direct => {
                let (a, b) = self.pair(conversation - self.first_pair);
                client == a || client == b
            }
        }
    }

    /// The conversation that a client joins as its `nth`; `None` after the last. Groups first, as they are durable.
    pub fn joins(&self, client: u32, nth: u32) -> Option<u32> {
        let groups = self
            .sizes
            .iter()
            .filter(|size| client / size.groups < size.members)
            .map(|size| size.first + client % size.groups);
        groups.chain(self.room.then_some(0)).nth(nth as usize)
    }

    /// The users in a conversation beside this client.
    pub fn others(&self, client: u32, conversation: u32) -> impl Iterator<Item = String> + '_ {
        let members = (0..self.members(conversation)).map(move |nth| self.member(conversation, nth));
        members.filter(move |&member| member != client).map(|member| self.user(member))
    }

    /// Clients with lower numbers than this make all groups.
    pub fn makers(&self) -> u32 {
        self.sizes.iter().map(|size| size.groups).max().unwrap_or(0)
    }

    /// Whether this client makes the group. The lowest member does: it is up before the others.
    pub fn creates(&self, client: u32, conversation: u32) -> bool {
        self.kind(conversation) == Kind::Group && self.member(conversation, 0) == client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_joins_agree() {
        let world = World::new(9, 103, true, &[100, 10, 1000, 10, 1], 20);
        let classes = world.classes();
        assert_eq!(
            classes.iter().map(|c| (c.members, c.count)).collect::<Vec<_>>(),
            [(103, 1), (10, 10), (100, 1), (2, 20)]
        );
        let total = classes.last().map(|c| c.first + c.count).unwrap();
        for conversation in 0..total {
            let members: Vec<u32> = (0..103).filter(|&c| world.is_member(conversation, c)).collect();
            assert_eq!(members.len() as u32, world.members(conversation), "conversation {conversation}");
            let mut counted: Vec<u32> =
                (0..world.members(conversation)).map(|n| world.member(conversation, n)).collect();
            counted.sort_unstable();
            assert_eq!(counted, members);
            let makers: Vec<u32> = (0..103).filter(|&c| world.creates(c, conversation)).collect();
            let made = usize::from(world.kind(conversation) == Kind::Group);
            assert!(makers.len() == made && makers.iter().all(|&m| m < world.makers()), "{makers:?}");
            if world.kind(conversation) != Kind::Direct {
                let joined: Vec<u32> = (0..103)
                    .filter(|&c| (0..9).map_while(|n| world.joins(c, n)).any(|j| j == conversation))
                    .collect();
                assert_eq!(joined, members);
            }
        }
        assert!(!world.is_member(total, 0) && world.name(total).is_none());
        assert_eq!(world.name(0), Some("r:00000009"));
        for conversation in 0..total {
            let name = world.name(conversation).unwrap();
            assert!(conversation::Conversation::parse(name).is_some(), "{name}");
        }
    }
}

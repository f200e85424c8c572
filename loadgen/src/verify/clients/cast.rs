//! Who there is in a schedule, and who talks where: drawn from the seed alone.

use millrace_protocol::conversation;

use crate::rng::Rng;
use crate::verify::history::Members;

/// Every so many users, one has a second device.
const SECOND_DEVICE_EVERY: usize = 4;

/// A conversation.
#[derive(Clone, Debug)]
pub struct Talk {
    /// Its id.
    pub name: String,
    /// The users in it; of a group, the first one makes it.
    pub users: Vec<u16>,
    /// A direct conversation otherwise.
    pub is_group: bool,
}

/// A device of a user.
#[derive(Clone, Debug)]
pub struct Part {
    /// Whose.
    pub user: u16,
    /// Among that user's.
    pub name: &'static str,
    /// Framed TCP otherwise.
    pub websocket: bool,
}

/// All users, devices and conversations.
#[derive(Clone, Debug)]
pub struct Cast {
    /// Which schedule.
    pub run: u32,
    /// Names.
    pub users: Vec<String>,
    /// Devices; the first ones of all users come first.
    pub devices: Vec<Part>,
    /// Conversations, groups first.
    pub talks: Vec<Talk>,
}

impl Cast {
    /// Of `users` users (at least 2), half of whose devices are on WebSocket.
    pub fn new(run: u32, users: u16, rng: &mut Rng) -> Self {
        let names = (0..users).map(|user| format!("v{run:08x}.u{user}")).collect::<Vec<_>>();
        let part = |user: u16, name, at: usize| Part { user, name, websocket: at % 2 == 1 };
        let mut devices: Vec<Part> = (0..users).map(|user| part(user, "a", user.into())).collect();
        for user in (0..users).step_by(SECOND_DEVICE_EVERY) {
            devices.push(part(user, "b", devices.len()));
        }
        let mut talks = Vec::new();
        let mut sizes: Vec<u16> = vec![users / 2, users / 4, 8, 5, 3];
        sizes.retain(|size| (2..=users).contains(size));
        for (at, size) in sizes.into_iter().enumerate() {
            let mut everyone: Vec<u16> = (0..users).collect();
            for taken in 0..size {
                let left = u64::from(users - taken);
                everyone.swap(taken.into(), (u64::from(taken) + rng.below(left)) as usize);
            }
            everyone.truncate(size.into());
            talks.push(Talk { name: format!("g:v{run:08x}.g{at}"), users: everyone, is_group: true });
        }
        // Everyone talks to a neighbour, and to somebody drawn; one makes notes to itself.
        let mut pairs: Vec<(u16, u16)> = (0..users).map(|user| (user, (user + 1) % users)).collect();
        pairs.extend((0..users / 2).map(|user| (user, rng.below(users.into()) as u16)));
        for pair in &mut pairs {
            *pair = (pair.0.min(pair.1), pair.0.max(pair.1));
        }
        pairs.push((0, 0));
        pairs.sort_unstable();
        pairs.dedup();
        talks.extend(pairs.into_iter().map(|(a, b)| {
            let users = if a == b { vec![a] } else { vec![a, b] };
            let name = conversation::direct(&names[usize::from(a)], &names[usize::from(b)]);
            Talk { name, users, is_group: false }
        }));
        Cast { run, users: names, devices, talks }
    }

    /// The conversations as the history knows them.
    pub fn members(&self) -> Vec<Members> {
        let devices_of = |talk: &Talk| {
            let all = (0..).zip(&self.devices);
            all.filter(|(_, part)| talk.users.contains(&part.user)).map(|(at, _)| at).collect()
        };
        self.talks.iter().map(|talk| Members { name: talk.name.clone(), devices: devices_of(talk) }).collect()
    }

    /// The conversations of a user, by their places.
    pub fn talks_of(&self, user: u16) -> impl Iterator<Item = u16> + '_ {
        (0..).zip(&self.talks).filter(move |(_, talk)| talk.users.contains(&user)).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_somebody_to_talk_to() {
        let cast = Cast::new(7, 40, &mut Rng::new(1));
        assert_eq!((cast.users.len(), cast.devices.len()), (40, 50));
        assert_eq!(cast.devices.iter().filter(|part| part.websocket).count(), 25);
        for talk in &cast.talks {
            assert!(conversation::Conversation::parse(&talk.name).is_some(), "{}", talk.name);
        }
        for user in 0..40 {
            assert!(cast.talks_of(user).count() >= 2, "user {user}");
        }
        let members = cast.members();
        assert!(members.iter().all(|members| !members.devices.is_empty()));
        let mut names: Vec<_> = members.iter().map(|members| &members.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cast.talks.len());
        assert_eq!(Cast::new(7, 2, &mut Rng::new(1)).talks.len(), 2);
    }
}

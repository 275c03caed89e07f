//! Statistical disclosure: who is online when, over many sessions, against which destinations are active.
//!
//! No timing within a session is needed, so no mixing, delay or cover of flows helps against it: only users that stay
//! online, or destinations that stay active, do.

use rayon::prelude::*;

use crate::Scores;

/// What keeps the least squares well-posed while there are fewer sessions than users, in sessions.
const RIDGE: f64 = 3.0;

/// What one session shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Session {
    /// Users online, as indices, each once.
    pub users: Vec<usize>,
    /// Destinations with traffic, as indices, and how much: datagrams, or one for each flow.
    pub destinations: Vec<(usize, f64)>,
}

/// The mean activity of each destination while a user is online, above that while it is not. Users (rows) by
/// destinations (columns).
///
/// Sources: G. Danezis, Statistical Disclosure Attacks: Traffic Confirmation in Open Environments, SEC 2003; G. Danezis
/// and A. Serjantov, Statistical Disclosure or Intersection Attacks on Anonymity Systems, IH 2004.
pub fn statistical(sessions: &[Session], users: usize, destinations: usize) -> Scores {
    let total = totals(sessions.iter(), destinations);
    let mut online = vec![0.0; users];
    let mut with = vec![vec![0.0; destinations]; users];
    for session in sessions {
        for &user in &session.users {
            online[user] += 1.0;
            for &(destination, activity) in &session.destinations {
                with[user][destination] += activity;
            }
        }
    }
    Scores::of_pairs(users, destinations, |user, destination| {
        let (sum, count) = (with[user][destination], online[user]);
        let offline = sessions.len() as f64 - count;
        if count == 0.0 || offline == 0.0 {
            return 0.0;
        }
        sum / count - (total[destination] - sum) / offline
    })
}

/// What each user adds to each destination's activity, as the least squares over all sessions have it: other users
/// that are often online together with one are taken out. Users (rows) by destinations (columns).
///
/// Source: F. Pérez-González and C. Troncoso, Understanding Statistical Disclosure: A Least Squares Approach, PETS
/// 2012.
pub fn least_squares(sessions: &[Session], users: usize, destinations: usize) -> Scores {
    // The normal equations. Users whose presence does not vary are told apart by nothing: a ridge keeps their
    // shares equal. A last column of ones takes what no user causes.
    let unknowns = users + 1;
    let mut together = vec![vec![0.0; unknowns]; unknowns];
    let mut with = vec![vec![0.0; destinations]; unknowns];
    for session in sessions {
        let present = || session.users.iter().copied().chain([users]);
        for a in present() {
            for b in present() {
                together[a][b] += 1.0;
            }
            for &(destination, activity) in &session.destinations {
                with[a][destination] += activity;
            }
        }
    }
    for (i, row) in together.iter_mut().enumerate() {
        row[i] += RIDGE;
    }
    let factor = cholesky(together);
    let columns: Vec<Vec<f64>> = (0..destinations)
        .into_par_iter()
        .map(|destination| solve(&factor, with.iter().map(|row| row[destination]).collect()))
        .collect();
    Scores::of_pairs(users, destinations, |user, destination| columns[destination][user])
}

fn totals<'a>(sessions: impl Iterator<Item = &'a Session>, destinations: usize) -> Vec<f64> {
    let mut totals = vec![0.0; destinations];
    for &(destination, activity) in sessions.flat_map(|session| &session.destinations) {
        totals[destination] += activity;
    }
    totals
}

/// The lower triangle whose product with its transpose is `matrix`, which is symmetric and positive definite.
fn cholesky(mut matrix: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for i in 0..matrix.len() {
        let (above, rest) = matrix.split_at_mut(i);
        let row = &mut rest[0];
        for (j, other) in above.iter().enumerate() {
            let known: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - known) / other[j];
        }
        let known: f64 = row[..i].iter().map(|a| a * a).sum();
        row[i] = (row[i] - known).sqrt();
    }
    matrix
}

/// Solves `factor * transpose(factor) * x = values`.
fn solve(factor: &[Vec<f64>], mut values: Vec<f64>) -> Vec<f64> {
    for i in 0..values.len() {
        let known: f64 = factor[i][..i].iter().zip(&values).map(|(a, b)| a * b).sum();
        values[i] = (values[i] - known) / factor[i][i];
    }
    for i in (0..values.len()).rev() {
        let known: f64 = (i + 1..values.len()).map(|j| factor[j][i] * values[j]).sum();
        values[i] = (values[i] - known) / factor[i][i];
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Truth;
    use crate::figures::top1;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha20Rng;

    const USERS: usize = 100;

    /// Sessions in which each user is online as `online` says and then sends to its own destination; half of the
    /// destinations also have traffic of strangers.
    fn sessions(seed: u64, count: usize, online: impl Fn(&mut ChaCha20Rng) -> Vec<usize>) -> (Vec<Session>, Truth) {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let mut flow_of: Vec<usize> = (0..USERS).collect();
        flow_of.shuffle(&mut rng);
        let sessions = (0..count)
            .map(|_| {
                let users = online(&mut rng);
                let mut destinations: Vec<(usize, f64)> = users.iter().map(|&user| (flow_of[user], 1.0)).collect();
                destinations.extend((0..USERS / 2).filter(|_| rng.random_bool(0.3)).map(|flow| (flow, 1.0)));
                Session { users, destinations }
            })
            .collect();
        (sessions, Truth(flow_of))
    }

    #[test]
    fn users_that_come_and_go_are_disclosed() {
        let often = |user: usize| 0.1 + 0.3 * (user % 3) as f64;
        let online = |rng: &mut ChaCha20Rng| (0..USERS).filter(|&user| rng.random_bool(often(user))).collect();
        let (sessions, truth) = sessions(1, 50, online);
        assert!(top1(&statistical(&sessions, USERS, USERS), &truth) > 0.9);
        assert!(top1(&least_squares(&sessions, USERS, USERS), &truth) > 0.9);
    }

    #[test]
    fn least_squares_parts_users_that_come_together() {
        // Groups of five, of which each member stays away now and then.
        let online = |rng: &mut ChaCha20Rng| {
            let groups: Vec<usize> = (0..USERS / 5).filter(|_| rng.random_bool(0.3)).collect();
            groups.iter().flat_map(|group| 5 * group..5 * group + 5).filter(|_| rng.random_bool(0.95)).collect()
        };
        let (sessions, truth) = sessions(2, 200, online);
        let (means, squares) = (statistical(&sessions, USERS, USERS), least_squares(&sessions, USERS, USERS));
        assert!(top1(&squares, &truth) > 0.9);
        assert!(top1(&squares, &truth) >= top1(&means, &truth));
    }

    #[test]
    fn users_that_are_always_online_are_not_disclosed() {
        let (sessions, truth) = sessions(2, 100, |_| (0..USERS).collect());
        assert!(top1(&statistical(&sessions, USERS, USERS), &truth) < 0.05);
        assert!(top1(&least_squares(&sessions, USERS, USERS), &truth) < 0.05);
    }
}

-- Erasures that Postgres has confirmed, or that were obeyed here. A server that was rewound to before one may hold what
-- was erased again; then it is erased again. Nothing of what the user had stored is kept.
create table erasures (
    user_id text primary key not null,
    erased_rev integer not null,
    erased_at integer not null,
    in_doubt integer not null default 0
) strict, without rowid;

-- The first number of the queue that was not known to be decided when the copy came into doubt; null when it is in none,
-- and when all that may be lost of it was queued again. A mark at or above it says nothing of what had been decided.
alter table users add column first_unsent integer;

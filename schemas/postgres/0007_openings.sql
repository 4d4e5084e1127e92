-- Which opening of a client's file came after which. A copied data directory goes on under the same client and gives out
-- the same queue numbers for other operations; a mark alone, which names the opening that set it, does not say from
-- where on. Holds nothing of any user, and is reached by the two functions only.

create table memory.openings (
    client_id uuid not null,
    open_token uuid not null,
    -- The first queue number that it may have given out.
    first_seq bigint not null,
    -- The last one before it in the same file that gave out any; null where the file no longer knew.
    parent uuid,
    noted_at timestamptz not null default now(),
    constraint openings_pkey primary key (client_id, open_token)
);
alter table memory.openings enable row level security;
alter table memory.openings force row level security;
create policy functions_only on memory.openings using (true);

-- Notes openings of one file, oldest first; what was noted before stays as it was. Of two copies that part later than a
-- year after an opening, that opening is not needed any more.
create function memory.note_openings(p_client uuid, p_tokens uuid[], p_first_seqs bigint[]) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    delete from memory.openings o where o.client_id = p_client and o.noted_at < now() - interval '1 year';
    insert into memory.openings (client_id, open_token, first_seq, parent)
    select p_client, told.open_token, told.first_seq, lag(told.open_token) over (order by told.place)
    from unnest(p_tokens, p_first_seqs) with ordinality as told (open_token, first_seq, place)
    on conflict do nothing;
$$;

-- From an opening back to the first of those named, or as far as it is known.
create function memory.descent(p_client uuid, p_token uuid, p_known uuid[])
returns table (open_token text, first_seq bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    with recursive line as (
        select o.open_token, o.first_seq, o.parent, 1 as depth from memory.openings o
        where o.client_id = p_client and o.open_token = p_token
        union all
        select o.open_token, o.first_seq, o.parent, l.depth + 1
        from line l join memory.openings o on o.client_id = p_client and o.open_token = l.parent
        where l.open_token <> all (p_known) and l.depth < 10000
    )
    select l.open_token::text, l.first_seq from line l order by l.depth;
$$;

revoke all on function memory.note_openings(uuid, uuid[], bigint[]), memory.descent(uuid, uuid, uuid[]) from public;
grant execute on function memory.note_openings(uuid, uuid[], bigint[]), memory.descent(uuid, uuid, uuid[])
    to hybrid_memory_app;

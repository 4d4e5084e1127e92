-- Which installation this is. A process ties its local file to it, so that what is queued for one database is never
-- carried to another that answers under the same name. A dump takes it along, for it is the same memory.

do $$
begin
    execute format(
        'create function memory.installation() returns uuid language sql immutable parallel safe'
        || ' set search_path = pg_catalog, pg_temp as %L',
        format('select %L::uuid', gen_random_uuid()));
end
$$;
revoke all on function memory.installation() from public;
grant execute on function memory.installation() to hybrid_memory_app;

-- The bytes of a vector are its truth. Where pgvector is there, a column beside them lets the server search; where it
-- is not, or is older than 0.8.4 (earlier ones have faults in HNSW), nothing else is missing.

-- Adds the column if it can be added, and says which pgvector it is of; null without one. Run at each migration, as
-- the extension may have come since.
create function memory.ensure_vector_column() returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_schema text;
    v_version text;
begin
    select n.nspname, e.extversion into v_schema, v_version
    from pg_extension e
    join pg_namespace n on n.oid = e.extnamespace
    where e.extname = 'vector' and string_to_array(e.extversion, '.')::integer[] >= array[0, 8, 4];
    if v_version is not null then
        execute format('alter table memory.vectors add column if not exists vector %I.vector', v_schema);
    end if;
    return v_version;
end
$$;
revoke all on function memory.ensure_vector_column() from public;

select memory.ensure_vector_column();

CREATE DATABASE prefect;
CREATE DATABASE ledger;
UPDATE pgstac.pgstac_settings SET value = 'on' WHERE name = 'context';

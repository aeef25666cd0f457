// node-postgres as its documentation shows it. The test that runs this says what it must print.
import pg from "pg";

const connectionString = process.env.DATABASE_URL;

async function connected(use) {
  const client = new pg.Client({ connectionString });
  await client.connect();
  try {
    return await use(client);
  } finally {
    await client.end();
  }
}

const codeOf = (query) => query.then(() => null, (error) => error.code);

const parts = {
  client: () =>
    connected(async (client) => {
      const plain = (await client.query("SELECT 42 AS answer")).rows;
      const parameters = [];
      for (let number = 0; number < 20; number += 1) {
        const text = "SELECT $1::int + 1 AS sum, $2::text AS text";
        parameters.push((await client.query(text, [number, `ümlaut ${number}`])).rows[0]);
      }
      const several = (await client.query("SELECT 1 AS n; SELECT 2 AS n")).map((result) => result.rows[0].n);
      const error = await codeOf(client.query("SELECT 1 / $1::int", [0]));
      const afterError = (await client.query("SELECT 1 AS n")).rows[0].n;

      await client.query("CREATE TABLE things (id int PRIMARY KEY)");
      await client.query("BEGIN");
      await client.query("INSERT INTO things VALUES ($1)", [1]);
      const inTransaction = [
        await codeOf(client.query("INSERT INTO things VALUES ($1)", [1])),
        await codeOf(client.query("SELECT 1")),
      ];
      await client.query("ROLLBACK");
      await client.query("BEGIN");
      await client.query("INSERT INTO things VALUES ($1), ($2)", [1, 2]);
      await client.query("COMMIT");
      const committed = (await client.query("SELECT id FROM things ORDER BY id")).rows.map((row) => row.id);
      const large = (await client.query("SELECT $1::text AS text", ["x".repeat(300_000)])).rows[0].text.length;
      return { plain, parameters, several, error, afterError, inTransaction, committed, large };
    }),

  pool: async () => {
    const pool = new pg.Pool({ connectionString, max: 20 });
    let wrong = 0;
    const questions = Array.from({ length: 400 }, async (_, number) => {
      const text = `SELECT $1::int AS n, 'question ${number % 50}' AS question`;
      const { n, question } = (await pool.query(text, [number])).rows[0];
      wrong += n !== number || question !== `question ${number % 50}`;
    });
    await Promise.all(questions);
    await pool.end();
    return { wrong, asked: questions.length };
  },

  named: () =>
    connected(async (client) => {
      const answers = [];
      for (let number = 0; number < 5; number += 1) {
        const query = { name: "double", text: "SELECT $1::int * 2 AS n", values: [number] };
        answers.push((await client.query(query)).rows[0].n);
      }
      return { answers };
    }),
};

console.log(JSON.stringify(await parts[process.argv[2]]()));
